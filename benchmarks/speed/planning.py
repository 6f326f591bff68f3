"""What large grids cost: ``python -m benchmarks.speed.planning [--cells 1000,4000,16000]``.

CPU seconds of the commands that plan a grid, or read all of its records: cost should grow as the
cells do. The records are made up; no number in them was measured.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from backdoorbench_ext import suite
from backdoorbench_ext.records import FORMAT
from backdoorbench_ext.suite import Cell, Suite

from .timing import counts

# data set, attacks, defenses and rates of every grid: 1,000 cells a seed
GRID = """
from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

SUITE = Suite(
    name="large",
    protocol=CBD,
    datasets=("cifar10",),
    attacks=tuple(f"badnets[size={{n}}]" for n in range(1, 21)),
    defenses=("none", *(f"cbd[beta={{n}}e-4]" for n in range(1, 25))),
    rates=(0.05, 0.1),
    seeds=tuple(range({seeds})),
)
"""
COMMANDS = {
    "bbx --help": ["--help"],
    "bbx list": ["list"],
    "a typing error": ["run", "lrge"],
    "run --dry-run": ["run", "large.py", "--dry-run"],
    "status": ["status", "large.py"],
    "table --format csv": ["table", "large.py", "--format", "csv"],
    "table --format latex": ["table", "large.py", "--format", "latex"],
    "report": ["report", "large.py"],
}


def record(cell: Cell, rng: random.Random, form: int = FORMAT) -> dict[str, Any]:
    """A record as long as those of 100 epochs on CIFAR-10, its numbers drawn at random."""
    counts = {"ca": [rng.randrange(10_000), 10_000]}
    counts |= {name: [rng.randrange(9_000), 9_000] for name in ("asr", "arr")}
    return {
        "format": form,
        "spec": cell.spec,
        "cell": cell.names,
        "metrics": counts,
        "hits": {name: "A" * (4 * -(-n // 24)) for name, (_, n) in counts.items()},
        "probes": {},
        "suspects": {},
        "curves": {"train loss": [rng.random() for _ in range(100)]},
        "given": {"train_images": 47_500, "poisoned": 4750, "cover": 0, "clean_images": 0},
        "model": {"parameters": 175_000},
        "time": {"training": 1.0, "stages": {"train": 1.0}, "poisoning": 1.0, "evaluation": 1.0},
        "surroundings": {"device": "made up", "commit": "none", "versions": {}, "bf16": False},
    }


def write(grid: Suite, folder: Path, form: int = FORMAT) -> None:
    """A record for every cell of a grid, in a folder such as a run leaves."""
    grid.save(folder / grid.name)
    rng = random.Random(0)
    for cell in grid.cells():
        path = folder / grid.name / cell.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record(cell, rng, form)))


def seconds(words: list[str], folder: Path) -> float:
    """CPU seconds, user and system, of a command and what it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "backdoorbench_ext", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(cells: int) -> dict[str, float]:
    """CPU seconds of every command on a grid of so many cells, in thousands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.py").write_text(GRID.format(seeds=cells // 1000))
        spent = {}
        for command, words in COMMANDS.items():
            # what reads records has them
            if command == "status":
                write(suite.load(str(folder / "large.py")), folder / "runs")
            spent[command] = seconds(words, folder)
        return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = (1000, 4000, 16000)
    parser.add_argument("--cells", type=counts, default=default, help="sizes, in whole thousands")
    sizes = parser.parse_args().cells
    if any(size % 1000 for size in sizes):
        parser.error(f"--cells must be whole thousands, not {', '.join(map(str, sizes))}")
    spent = {size: measure(size) for size in sizes}
    print(f"{'CPU seconds':24}" + "".join(f"{size:>10,} cells" for size in sizes))
    for command in COMMANDS:
        numbers = "".join(f"{spent[size][command]:16.2f}" for size in sizes)
        print(f"{command:24}{numbers}", flush=True)


if __name__ == "__main__":
    main()

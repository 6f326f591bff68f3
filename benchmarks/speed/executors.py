"""What a cell costs beside its training: ``python -m benchmarks.speed.executors [--cells 200]``.

Seconds of a grid whose cells train for one step, by everything that can run it; and of runs that
share a folder. Ray and Slurm are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from backdoorbench_ext.devices import cores
from backdoorbench_ext.errors import in_one_line

GRID = "run --dataset digits[train=64,test=20] --attacks none --defenses none --epochs 1"
GRID += " --model cnn5 --device cpu"


def seconds(cells: int, executor: str, runs: int = 1) -> float:
    """How long ``runs`` commands on one folder take for a grid of so many cells.

    Raises:
        RuntimeError: a command failed, or cells have no record.
    """
    with tempfile.TemporaryDirectory() as out:
        seeds = ",".join(map(str, range(cells)))
        command = [sys.executable, "-m", "backdoorbench_ext", *GRID.split()]
        command += ["--seeds", seeds, "--executor", executor, "--out", out]
        begun = time.perf_counter()
        started = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(runs)
        ]
        codes = [one.wait() for one in started]
        spent = time.perf_counter() - begun
        found = len(list(Path(out).rglob("rate*.json")))
        if any(codes) or found != cells:
            raise RuntimeError(f"{executor}: exit codes {codes}, {found} of {cells} records")
    return spent


def ways(sbatch: str, cells: int) -> dict[str, str]:
    """The executors that can be had here."""
    jobs = cores()
    found = {"serial": "serial", f"processes, {jobs} at a time": f"processes[jobs={jobs}]"}
    if find_spec("ray"):
        found["ray"] = "ray"
    if find_spec("submitit") and shutil.which("sbatch"):
        part = -(-cells // 4)
        found["slurm, 4 jobs"] = f"slurm[sbatch={sbatch!r},cells_per_job={part}]"
    return found


@in_one_line()
def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--sbatch", default="", help="what Slurm's jobs are asked for")
    asked = parser.parse_args()
    for title, executor in ways(asked.sbatch, asked.cells).items():
        few = seconds(4, executor)
        many = seconds(asked.cells, executor)
        each = (many - few) / (asked.cells - 4)
        print(f"{title:28} {many:6.1f} s, 4 cells {few:6.1f} s, {each:6.3f} s a further cell")
    for runs in (1, 2, 4):
        print(f"{f'{runs} runs on one folder':28} {seconds(asked.cells, 'serial', runs):6.1f} s")


if __name__ == "__main__":
    main()

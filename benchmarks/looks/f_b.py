"""What CBD's f_B knows when T1 ends, and what becomes of CBD: ``python -m benchmarks.looks.f_b
results --picture f_b.png``.

Of every record of CBD below a folder that was made with ``bbx run --audit``: f_B's loss on poisoned
training images after T1, the AUROC of the weights at the end, and CBD's CA and ASR in percent, by
that loss. A training that several suites have counts once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from backdoorbench_ext import plots, records
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.naming import plain
from backdoorbench_ext.registry import parse
from backdoorbench_ext.suite import digest

LOSS = "f_B, poisoned loss"
METRICS = ("ca", "asr")
# below it all losses are drawn alike
LEAST = 1e-4
MARKS = "os^Dvp*"


@dataclass(frozen=True)
class Run:
    """A training of CBD: f_B's loss on poisoned images, then what the weights and f_C became."""

    loss: float
    auroc: float | None
    ca: float
    asr: float
    network: str
    data: str
    attack: str
    defense: str
    seed: int


def look(folder: Path) -> list[Run]:
    """Every training below a folder, by f_B's loss.

    Raises:
        InputError: none was looked into.
    """
    found = {digest(r["spec"]): r for r in records.read_all(folder) if LOSS in r["curves"]}
    runs = [_run(r) for r in found.values() if r["metrics"]["asr"][1]]
    if not runs:
        raise InputError(f"{folder}: no records of CBD that bbx run --audit has made")
    return sorted(runs, key=lambda run: run.loss)


def _run(record: records.Record) -> Run:
    cell = record["cell"]
    ca, asr = (100 * record["metrics"][name][0] / record["metrics"][name][1] for name in METRICS)
    return Run(
        record["curves"][LOSS][-1],
        record.get("suspects", {}).get("weights", {}).get("auroc"),
        ca,
        asr,
        record["spec"]["protocol"]["model"],
        cell["dataset"],
        parse(cell["attack"])[0],
        cell["defense"],
        record["spec"]["seed"],
    )


def draw(runs: list[Run], file: Path) -> None:
    """ASR over f_B's loss: a colour an attack, a mark a network; GTSRB's are hollow."""
    attacks = list(dict.fromkeys(run.attack for run in runs))
    networks = list(dict.fromkeys(run.network for run in runs))
    names: dict[str, Any] = {}
    with plt.rc_context(plots.STYLE):
        figure, ((axes,),) = plots.sheet(1, 1, (5.0, 2.6))
        for run in runs:
            colour = plots.OKABE_ITO[attacks.index(run.attack)]
            looks: Any = {
                "marker": MARKS[networks.index(run.network)],
                "mec": colour,
                "mfc": "none" if run.data.startswith("gtsrb") else colour,
            }
            axes.plot(max(run.loss, LEAST), run.asr, ls="", ms=5, alpha=0.8, **looks)
        for place, attack in enumerate(attacks):
            (line,) = axes.plot([], [], "o", c=plots.OKABE_ITO[place], ms=5)
            names[plain("attacks", attack)] = line
        for place, network in enumerate(networks):
            (names[network],) = axes.plot([], [], MARKS[place], c="#777777", ms=5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x > LEAST else f"{x:g} or less")
        axes.set_xlabel("f_B's loss on poisoned training images after T1")
        axes.set_ylabel("CBD's ASR, percent")
        axes.set_ylim(-4, 104)
        plots.legend(figure, list(names.values()), list(names))
    plots.save(figure, file.with_suffix(""), [file.suffix[1:]])


def main() -> None:
    """Print a line a training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of results, or of several")
    parser.add_argument("--picture", type=Path, help="where to draw them: a .png file")
    given = parser.parse_args()
    runs = look(given.folder)
    print(f"{'loss':>8}{'AUROC':>8}{'CA':>7}{'ASR':>7}  cell")
    for run in runs:
        auroc = "-" if run.auroc is None else f"{run.auroc:.3f}"
        cell = f"{run.data} {run.network} {run.attack} {run.defense} seed {run.seed}"
        print(f"{run.loss:8.3f}{auroc:>8}{run.ca:7.1f}{run.asr:7.1f}  {cell}")
    if given.picture:
        draw(runs, given.picture)


if __name__ == "__main__":
    main()

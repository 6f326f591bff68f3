"""Is the trigger learned where CBD and MCCI want it, and do they hold? ``python -m
benchmarks.looks.first cbd results --picture first.png``.

Of every record of the defense below a folder that was made with ``bbx run --audit``: the loss of
poisoned training images early in its training, and its CA and ASR in percent, by that loss. CBD
holds if f_B knows the trigger after T1, so that its loss is low. MCCI, told a clean mean spectrum,
holds if the loss is high after the second epoch: then its AIN knows the trigger, and the SFRN does
not. A training that several suites have counts once; of MCCI's answers the average's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from backdoorbench_ext import plots, records
from backdoorbench_ext.errors import InputError, in_one_line
from backdoorbench_ext.naming import plain
from backdoorbench_ext.registry import parse
from backdoorbench_ext.suite import digest

METRICS = ("ca", "asr")
# below it all losses are drawn alike
LEAST = 1e-4
MARKS = "os^Dvp*"
# so that two pictures have the same colours
ATTACKS = ("badnets", "trojan", "blend", "sig", "wanet", "issba")


@dataclass(frozen=True)
class Curve:
    """The loss that is looked at: its curve's name, the place in it, and what a picture calls it.

    ``told``: what the spec of the defense must say.
    """

    name: str
    epoch: int
    title: str
    told: Mapping[str, str]


CURVES = {
    "cbd": Curve("f_B, poisoned loss", -1, "f_B's loss on poisoned training images after T1", {}),
    "mcci": Curve(
        "SFRN + AIN, poisoned loss",
        1,
        "loss of poisoned training images after the second epoch",
        {"inference": "avg"},
    ),
}


@dataclass(frozen=True)
class Run:
    """A training: the early loss of poisoned images, and what came of it in percent."""

    loss: float
    ca: float
    asr: float
    network: str
    data: str
    attack: str
    defense: str
    seed: int


def look(curve: Curve, folder: Path) -> list[Run]:
    """Every training below a folder, by its loss.

    Raises:
        InputError: none was looked into.
    """
    found = {digest(r["spec"]): r for r in records.read_all(folder) if _shows(r, curve)}
    runs = [_run(r, curve) for r in found.values()]
    if not runs:
        raise InputError(f"{folder}: no records of it that bbx run --audit has made")
    return sorted(runs, key=lambda run: run.loss)


def _shows(record: records.Record, curve: Curve) -> bool:
    """Whether a record has the curve, of a training set with poisoned images."""
    spec = record["spec"]["defense"]
    losses = record["curves"].get(curve.name, [])
    long = len(losses) > curve.epoch
    triggered = record["metrics"]["asr"][1] > 0 and record["cell"]["attack"] != "none"
    return long and bool(losses) and triggered and spec.items() >= curve.told.items()


def _run(record: records.Record, curve: Curve) -> Run:
    cell = record["cell"]
    ca, asr = (100 * record["metrics"][name][0] / record["metrics"][name][1] for name in METRICS)
    return Run(
        record["curves"][curve.name][curve.epoch],
        ca,
        asr,
        record["spec"]["protocol"]["model"],
        cell["dataset"],
        parse(cell["attack"])[0],
        cell["defense"],
        record["spec"]["seed"],
    )


def draw(runs: list[Run], curve: Curve, file: Path) -> None:
    """ASR over the loss: a colour an attack, a mark a network; GTSRB's are hollow."""
    here = {run.attack for run in runs}
    attacks = [name for name in ATTACKS if name in here] + sorted(here - {*ATTACKS})
    networks = sorted({run.network for run in runs})
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
        axes.set_xlabel(curve.title)
        axes.set_ylabel("ASR, percent")
        axes.set_ylim(-4, 104)
        plots.legend(figure, list(names.values()), list(names))
    plots.save(figure, file.with_suffix(""), [file.suffix[1:]])


@in_one_line()
def main() -> None:
    """Print a line a training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("defense", choices=CURVES)
    parser.add_argument("folder", type=Path, help="a folder of results, or of several")
    parser.add_argument("--picture", type=Path, help="where to draw them: a .png file")
    given = parser.parse_args()
    curve = CURVES[given.defense]
    runs = look(curve, given.folder)
    print(f"{'loss':>8}{'CA':>7}{'ASR':>7}  cell")
    for run in runs:
        cell = f"{run.data} {run.network} {run.attack} {run.defense} seed {run.seed}"
        print(f"{run.loss:8.3f}{run.ca:7.1f}{run.asr:7.1f}  {cell}")
    if given.picture:
        draw(runs, curve, given.picture)


if __name__ == "__main__":
    main()

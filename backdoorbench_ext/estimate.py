"""How long a planned run takes on this machine, and what it keeps: reckoned before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from . import runner
from .cost import Stopwatch, TooSlow
from .lab import Lab
from .runner import Plan
from .suite import Cell

# seconds after which the timing of a method is given up, and that of all
PATIENCE = 10.0
PATIENCE_FOR_ALL = 60.0
# stages that trainings of one attack share
SHARED = ("victim", "second victim")


@dataclass(frozen=True)
class Estimate:
    """``seconds`` of training, one at a time; ``timed`` of ``methods`` (a defense on a data set)
    were timed, the others count as the protocol's plain training; ``bytes`` that will be kept.
    """

    seconds: float
    trainings: int
    timed: int
    methods: int
    bytes: int

    def __str__(self) -> str:
        words = f"about {duration(self.seconds)} for {self.trainings} trainings one after another"
        if self.timed < self.methods:
            words += (
                f" ({self.timed} of {self.methods} methods were timed, others count as plain "
                "training)"
            )
        return f"{words}, learned triggers not counted; about {size(self.bytes)} on disk"


def estimate(plan: Plan, progress: Callable[[int, int], None] | None = None) -> Estimate:
    """Time a few steps of each stage of each defense of a plan, and reckon what all would take.

    Learned triggers, evaluation and what an audit looks at come on top. Trainings beside each other
    share the machine, so that their sum is about what all take.

    Raises:
        InputError: data that cannot be read.
    """
    groups = runner.groups(plan.todo)
    kinds = {_kind(group[0]): group[0] for group in groups}
    began = time.perf_counter()
    watches: dict[str, Watch] = {}
    known: dict[tuple[str, str], tuple[float, float]] = {}
    for done, (kind, cell) in enumerate(kinds.items()):
        if progress:
            progress(done, len(kinds))
        if cell.dataset not in watches:
            watches[cell.dataset] = Watch(cell, plan)
        # another toolbox's scripts have no steps that could be timed
        if ":" not in cell.defense and time.perf_counter() - began < PATIENCE_FOR_ALL:
            with suppress(TooSlow):
                known[kind] = watches[cell.dataset].epochs(cell)
    if progress:
        progress(len(kinds), len(kinds))
    total = 0.0
    victims: dict[tuple[str, str, float, int], float] = {}
    for group in groups:
        cell = group[0]
        epochs, victim = known.get(_kind(cell), (float(cell.rules.recipe.epochs), 0.0))
        an_epoch = watches[cell.dataset].an_epoch
        total += epochs * an_epoch
        place = (cell.dataset, cell.attack, cell.rate, cell.seed)
        victims[place] = max(victim * an_epoch, victims.get(place, 0.0))
    return Estimate(
        seconds=total + sum(victims.values()),
        trainings=len(groups),
        timed=len(known),
        methods=len(kinds),
        bytes=runner.kept(plan),
    )


def _kind(cell: Cell) -> tuple[str, str]:
    return cell.dataset, cell.defense


class Watch:
    """Times the methods of one data set."""

    def __init__(self, cell: Cell, plan: Plan) -> None:
        lab = Lab(cell, plan.options)
        self.train = lab.train
        self.stopwatch = Stopwatch(
            cell.rules, lab.train, lab.reserve, device=lab.device, steps=1, rounds=1
        )
        plain = median(self.stopwatch.plain() for _ in range(3))
        # seconds of plain training
        self.an_epoch = plain * self.stopwatch.per_epoch

    def epochs(self, cell: Cell) -> tuple[float, float]:
        """Epochs of plain training that a cell's defense takes, and that its victim takes.

        Raises:
            TooSlow: a few steps of it take too long.
        """
        self.stopwatch.stages = {}
        self.stopwatch.until = time.perf_counter() + PATIENCE
        cell.method("defenses").fit(self.train, self.stopwatch)
        stages = self.stopwatch.stages
        shared = sum(stages.get(name, 0.0) for name in SHARED)
        return sum(stages.values()) - shared, shared


def duration(seconds: float) -> str:
    """Seconds in words: "50 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes in words: "12 MiB"."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"

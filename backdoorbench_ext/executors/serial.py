"""One training after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backdoorbench_ext.executors import Executor
from backdoorbench_ext.suite import Cell
from backdoorbench_ext.work import Outcome, Tell, Work


@dataclass(frozen=True)
class Serial(Executor):
    """One group after the other."""

    def run(
        self, groups: Sequence[Sequence[Cell]], work: Work, tell: Tell
    ) -> Iterator[list[Outcome]]:
        for group in groups:
            yield work.run(group, tell)

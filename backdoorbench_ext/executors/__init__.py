"""Executors: one file each, registered under the file name; ``--executor NAME`` picks one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..api import Method
from ..suite import Cell
from ..work import Outcome, Tell, Work


@dataclass(frozen=True)
class Executor(Method, ABC):
    """A way to have groups of cells run; the cells of a group share a training."""

    @abstractmethod
    def run(
        self, groups: Sequence[Sequence[Cell]], work: Work, tell: Tell
    ) -> Iterator[list[Outcome]]:
        """Call ``work.run(group)`` for every group, anywhere; its outcomes as soon as it has ended.

        A cell must have exactly one outcome, also where what ran it has died. A group that another
        run is at has none, and is looked at again by the runner.

        Args:
            groups: in the order in which they are best run.
            work: may be sent to other processes.
            tell: to be called with the progress of cells, where it can be had.
        """

"""Some trainings at a time, each in a process of its own on this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from backdoorbench_ext.api import option
from backdoorbench_ext.devices import cores
from backdoorbench_ext.executors import Executor
from backdoorbench_ext.suite import Cell
from backdoorbench_ext.work import Outcome, Tell, Work

# how often a cell whose process died is begun again: what killed it may have been another's memory
RETRIES = 1
# what ends a worker, too, if somebody sends it
ENDING = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Processes(Executor):
    """Every worker is a process that lives as long as its work. One that dies is replaced; the cell
    that it was at is tried once more, and the others go on.
    """

    jobs: int = option(2, "trainings at a time", low=1)

    def run(
        self, groups: Sequence[Sequence[Cell]], work: Work, tell: Tell
    ) -> Iterator[list[Outcome]]:
        threads = max(1, cores() // self.jobs)
        waiting = deque(list(group) for group in groups)
        deaths: Counter[Path] = Counter()
        workers: list[Worker] = []
        try:
            while waiting or any(worker.group for worker in workers):
                while waiting and len(workers) < self.jobs:
                    workers.append(Worker(work, threads))
                for worker in workers:
                    if waiting and not worker.group:
                        worker.start(waiting.popleft())
                for worker in _heard(workers):
                    ended = worker.listen(tell)
                    if ended is None and worker.alive:
                        continue
                    if ended is None:
                        workers.remove(worker)
                        ended, left = _bury(worker.group, worker.death, work, deaths)
                        waiting.extendleft([left] if left else [])
                    worker.group = []
                    if ended:
                        yield ended
        finally:
            for worker in workers:
                worker.end()


def _heard(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until some have said something, or died."""
    ready = wait([worker.line for worker in workers if worker.group])
    return [worker for worker in workers if worker.line in ready]


def _bury(
    group: list[Cell], death: str, work: Work, deaths: Counter[Path]
) -> tuple[list[Outcome], list[Cell]]:
    """The outcomes of a group whose process has died, and the cells that are still to run: the one
    that it was at, unless it has died of it before, and those behind it.
    """
    outcomes: list[Outcome] = []
    for place, cell in enumerate(group):
        done = work.finished(cell)
        if done is None:
            deaths[cell.path] += 1
            if deaths[cell.path] <= RETRIES:
                return outcomes, group[place:]
            why = f"its process {death}, twice"
            return [*outcomes, work.failed(cell, why, why)], group[place + 1 :]
        outcomes.append(done)
    return outcomes, []


class Worker:
    """A process that runs groups one after the other, and ends when we do, however that is."""

    def __init__(self, work: Work, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.group: list[Cell] = []
        self.process = context.Process(target=_live, args=(theirs, work, threads))
        # A start that is interrupted leaves a process that complains. What is blocked then stays
        # so in the process: Ctrl-C is its parent's affair. The tracker's own start, within that of
        # a process, would unblock it.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        # or the line would not close with the process
        theirs.close()
        self.alive = True

    def start(self, group: list[Cell]) -> None:
        """Have a group run."""
        self.group = group
        try:
            self.line.send(group)
        except OSError:
            # it has died; the line says so when it is listened to
            return

    def listen(self, tell: Tell) -> list[Outcome] | None:
        """Hand on what the process has told of its progress; the outcomes, if it has ended."""
        try:
            while self.line.poll():
                said = self.line.recv()
                if isinstance(said, list):
                    return said
                tell(*said)
        except (EOFError, OSError):
            # perhaps in the middle of a word
            self.alive = False
            self.process.join()
        return None

    @property
    def death(self) -> str:
        """What it died of."""
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"was killed, signal {-code}{hint}"

    def end(self) -> None:
        """Closing the line ends the process at once, whatever it is at."""
        self.line.close()
        self.process.join(1)
        self.process.kill()


def _live(line: Connection[Any, Any], work: Work, threads: int) -> None:
    """A worker's life."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    tasks: queue.SimpleQueue[list[Cell]] = queue.SimpleQueue()

    def listen() -> None:
        """The line closes when the parent closes it or is gone: nobody reads on."""
        try:
            while True:
                tasks.put(line.recv())
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    work.ready(threads)
    while True:
        line.send(work.run(tasks.get(), lambda *news: line.send(news)))

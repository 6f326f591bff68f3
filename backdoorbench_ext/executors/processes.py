"""Some trainings at a time, each in a process of its own on this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from backdoorbench_ext import registry
from backdoorbench_ext.api import option
from backdoorbench_ext.devices import keep_memory
from backdoorbench_ext.executors import Executor
from backdoorbench_ext.suite import Cell
from backdoorbench_ext.work import Outcome, Tell, Work

# in a worker: the line to its parent
_parent: Any = None


@dataclass(frozen=True)
class Processes(Executor):
    """Every worker is a process that lives as long as its work; one that dies is replaced, and
    fails the cell that it was at, no other.
    """

    jobs: int = option(2, "trainings at a time", low=1)

    def run(
        self, groups: Sequence[Sequence[Cell]], work: Work, tell: Tell
    ) -> Iterator[list[Outcome]]:
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        waiting = deque(list(group) for group in groups)
        running: dict[Future[list[Outcome]], tuple[Worker, list[Cell]]] = {}
        idle = [Worker(work, threads) for _ in range(min(self.jobs, len(waiting)))]
        try:
            while waiting or running:
                while waiting and idle:
                    worker = idle.pop()
                    group = waiting.popleft()
                    running[worker.start(group)] = worker, group
                ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for worker, _ in running.values():
                    worker.listen(tell)
                for future in ended:
                    worker, group = running.pop(future)
                    try:
                        outcomes = future.result()
                    except BrokenProcessPool:
                        worker.end()
                        worker = Worker(work, threads)
                        outcomes, left = _bury(group, work)
                        if left:
                            waiting.appendleft(left)
                    finally:
                        idle.append(worker)
                    yield outcomes
        finally:
            for worker in [*idle, *(worker for worker, _ in running.values())]:
                worker.end()


def _bury(group: list[Cell], work: Work) -> tuple[list[Outcome], list[Cell]]:
    """The outcomes of a group whose process has died, and the cells that it had not come to."""
    outcomes: list[Outcome] = []
    for place, cell in enumerate(group):
        done = work.finished(cell)
        if done is None:
            error = "its process died (killed from outside, or out of memory)"
            return [*outcomes, work.failed(cell, error, error + "\n")], group[place + 1 :]
        outcomes.append(done)
    return outcomes, []


class Worker:
    """A process that runs groups one after the other, and ends when we do, however that is."""

    def __init__(self, work: Work, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.work = work
        self.pool = ProcessPoolExecutor(1, context, _begin, (theirs, work.options.plugins, threads))

    def start(self, group: list[Cell]) -> Future[list[Outcome]]:
        return self.pool.submit(_run, self.work, group)

    def listen(self, tell: Tell) -> None:
        """Hand on what the process has told of its progress."""
        try:
            while self.line.poll():
                tell(*self.line.recv())
        except (EOFError, OSError):
            # it has died in the middle of a word
            return

    def end(self) -> None:
        """Closing the line ends the process at once, whatever it is at."""
        self.line.close()
        self.pool.shutdown(wait=False, cancel_futures=True)


def _begin(line: Connection, plugins: Sequence[Any], threads: int) -> None:
    """A worker's first steps."""
    global _parent
    _parent = line
    torch.set_num_threads(threads)
    keep_memory()
    for file in plugins:
        registry.add_file(file)

    def watch() -> None:
        """The other end closes when the parent closes it or is gone: nobody reads on."""
        try:
            line.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(work: Work, group: list[Cell]) -> list[Outcome]:
    return work.run(group, lambda *news: _parent.send(news))

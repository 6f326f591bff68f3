"""A Slurm cluster: one array of jobs, some trainings a job, records in a folder that all nodes see.

``--executor 'slurm[sbatch="partition=gpu,time=4:00:00,gres=gpu:1"]'``. A cell is done when its
record lies there; Slurm is asked by ``squeue`` alone, which every cluster has, what is queued. So
the command may be stopped: jobs stay in the queue, and the same command takes them up again.

Jobs are written and sent by submitit (https://github.com/facebookincubator/submitit).
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from backdoorbench_ext.api import option
from backdoorbench_ext.devices import cores
from backdoorbench_ext.errors import InputError, one_line, reason, told
from backdoorbench_ext.executors import Executor
from backdoorbench_ext.executors.serial import Serial
from backdoorbench_ext.files import locked, write_text
from backdoorbench_ext.signals import Stopped, heeding
from backdoorbench_ext.suite import Cell
from backdoorbench_ext.work import Outcome, Tell, Work

log = logging.getLogger(__name__)
# how often trainings are sent again whose job has gone without a word
RETRIES = 3
# how often a job asks to be queued again when its time is over
RESTARTS = 100
# seconds between two looks at the queue
LOOK = 2.0
# seconds between two words of a job on its progress
WORD = 5.0
# what Slurm sends before the time is over, and what it and ``scancel`` end a job with
TIME_IS_OVER = signal.SIGUSR2
ENDING = (signal.SIGTERM, TIME_IS_OVER)

# trainings by their keys
Groups = dict[str, list[Cell]]


@dataclass(frozen=True)
class Slurm(Executor):
    """One array of jobs; Slurm places them."""

    sbatch: str = option(
        "", "what sbatch is asked for, in quotes: 'partition=gpu,time=4:00:00,gres=gpu:1'"
    )
    cells_per_job: int = option(1, "a job takes trainings until it has so many cells", low=1)
    at_a_time: int = option(256, "jobs that run at a time", low=1)

    def run(
        self, groups: Sequence[Sequence[Cell]], work: Work, tell: Tell
    ) -> Iterator[list[Outcome]]:
        folder = work.folder.resolve() / ".state"
        work = replace(work, folder=folder.parent)
        desk = Desk(folder / "slurm", self)
        left = {group[0].key: list(group) for group in groups}
        sent: Counter[str] = Counter()
        try:
            while left:
                jobs = desk.jobs()
                for key, group in list(left.items()):
                    desk.hand_on(key, group, tell)
                    ended = _ended(group, work, desk.since.get(key, math.inf))
                    if ended is None and key not in jobs and sent[key] > RETRIES:
                        why = f"its jobs ended without a word, {sent[key]} times; see {desk.folder}"
                        ended = [
                            work.finished(cell) or work.failed(cell, why, why) for cell in group
                        ]
                    if ended is not None:
                        del left[key]
                        yield ended
                if missing := {key: group for key, group in left.items() if key not in jobs}:
                    sent.update(desk.send(missing, work))
                if left:
                    time.sleep(LOOK)
        finally:
            if left:
                desk.leave()


def _ended(group: Sequence[Cell], work: Work, since: float) -> list[Outcome] | None:
    """The outcomes of a training all of whose cells have their record, or have failed after
    ``since``; None if one has neither.
    """
    outcomes: list[Outcome] = []
    for cell in group:
        outcome = work.finished(cell) or work.why(cell, since)
        if outcome is None:
            return None
        outcomes.append(outcome)
    return outcomes


class Desk:
    """The jobs that were sent for a folder of results, by whomever: a file an array, that says
    which trainings are each job's.
    """

    def __init__(self, folder: Path, asked: Slurm) -> None:
        self.folder = folder
        self.asked = asked
        # when the job of a training was sent, by the clock that writes the folder's files
        self.since: dict[str, float] = {}
        self.silent = False

    def jobs(self) -> dict[str, str]:
        """The job of every training that is queued or runs; files of arrays that are no more are
        taken away.
        """
        # first: what another sends meanwhile has no file that could be taken away
        sent = {file: self._read(file) for file in self._files()}
        queued = _queued(quiet=self.silent)
        self.silent = queued is None
        found: dict[str, str] = {}
        for file, jobs in sent.items():
            # while Slurm does not answer, what was sent is taken to be there
            there = {key: job for key, job in jobs.items() if queued is None or job in queued}
            found |= there
            if not there:
                file.unlink(missing_ok=True)
        return found

    def send(self, groups: Groups, work: Work) -> list[str]:
        """Send the trainings that no job has by now: their keys."""
        with locked(self.folder / "desk"):
            there = self.jobs()
            new = {key: group for key, group in groups.items() if key not in there}
            if not new:
                return []
            chunks = _chunks(new, self.asked.cells_per_job)
            names = self._submit(chunks, work)
            keys = {name: list(chunk) for name, chunk in zip(names, chunks, strict=True)}
            array = names[0].partition("_")[0]
            file = self.folder / f"{array}.json"
            write_text(file, json.dumps(keys, indent=1) + "\n")
            self._read(file)
        return list(new)

    def _submit(self, chunks: Sequence[Groups], work: Work) -> list[str]:
        """The names that Slurm gave.

        Raises:
            InputError: submitit or Slurm is missing, or sbatch refuses.
        """
        try:
            import submitit
        except ImportError as error:
            raise InputError(
                "--executor slurm needs submitit: pip install 'backdoorbench_ext[slurm]'"
            ) from error
        try:
            executor = submitit.SlurmExecutor(self.folder / "logs")
            executor.update_parameters(
                job_name=f"bbx-{work.folder.name}",
                array_parallelism=self.asked.at_a_time,
                additional_parameters={"requeue": True} | _flags(self.asked.sbatch),
            )
            with redirect_stdout(None):
                jobs = executor.map_array(Chunk(self.folder, work), chunks)
        except (RuntimeError, OSError) as error:
            raise InputError(f"slurm: {one_line(str(error)) or told(error)}") from error
        return [job.job_id for job in jobs]

    def hand_on(self, key: str, group: Sequence[Cell], tell: Tell) -> None:
        """Tell what the job of a training has told."""
        with suppress(OSError, ValueError):
            place, *news = json.loads(_said(self.folder, key).read_text("utf-8"))
            tell(group[place], *news)

    def leave(self) -> None:
        """Say what goes on without us."""
        names = sorted({file.stem for file in self._files()})
        if names:
            log.warning(f"in the queue: {' '.join(names)}; scancel {' '.join(names)} ends them")

    def _files(self) -> list[Path]:
        return [file for file in self.folder.glob("*.json") if file.stem.isdecimal()]

    def _read(self, file: Path) -> dict[str, str]:
        """The job of every training of an array."""
        try:
            jobs = json.loads(file.read_text("utf-8"))
            found = {key: job for job, keys in jobs.items() for key in keys}
            self.since |= dict.fromkeys(found, file.stat().st_mtime)
        except (OSError, ValueError):
            return {}
        return found


def _said(folder: Path, key: str) -> Path:
    return folder / f"{key}.said"


def _flags(text: str) -> dict[str, Any]:
    """``time=60,exclusive`` -> {"time": "60", "exclusive": True}."""
    pairs = (word.strip().lstrip("-").partition("=") for word in text.split(",") if word.strip())
    return {key: value if equals else True for key, equals, value in pairs}


def _queued(quiet: bool) -> set[str] | None:
    """All jobs of this user's; None if Slurm does not answer now, which is said unless ``quiet``.

    Raises:
        InputError: there is no Slurm here.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError as error:
        raise InputError("slurm: there is no squeue here: run this where jobs are sent") from error
    except (subprocess.SubprocessError, OSError) as error:
        if not quiet:
            log.warning(f"squeue does not answer, asking on: {reason(error)}")
        return None
    return set(asked.stdout.split())


def _chunks(groups: Groups, cells: int) -> list[Groups]:
    """Trainings in order, in parts of about so many cells."""
    chunks: list[Groups] = []
    room = 0
    for key, group in groups.items():
        if room <= 0:
            chunks.append({})
            room = cells
        chunks[-1][key] = group
        room -= len(group)
    return chunks


@dataclass(frozen=True)
class Chunk:
    """What a job does: it runs its trainings as a run of its own would, on the same folder.

    Args:
        folder: where it tells how far it is.
        work: of the run that sent it.
    """

    folder: Path
    work: Work

    def __call__(self, groups: Groups) -> None:
        from backdoorbench_ext.runner import outcomes_of

        given = (os.environ.get(name) for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"))
        self.work.ready(next((int(number) for number in given if number), cores()))
        tell = Teller(self.folder, groups)
        console = Console(stderr=True)
        try:
            # in place of submitit's own handlers
            with heeding(ENDING):
                for outcome in outcomes_of(
                    Serial(), list(groups.values()), self.work, tell, console
                ):
                    console.print(one_line(str(outcome)), markup=False, soft_wrap=True)
        except Stopped as stopped:
            number = stopped.args[0]
            if number == TIME_IS_OVER:
                _again()
            raise SystemExit(128 + number) from stopped
        finally:
            tell.end()


class Teller:
    """Writes how far the trainings of a job are, where the run that sent it reads it."""

    def __init__(self, folder: Path, groups: Groups) -> None:
        self.folder = folder
        self.places = {
            cell.path: (key, place)
            for key, group in groups.items()
            for place, cell in enumerate(group)
        }
        self.keys = list(groups)
        self.last = 0.0

    def __call__(self, cell: Cell, *news: Any) -> None:
        if time.monotonic() - self.last < WORD:
            return
        self.last = time.monotonic()
        key, place = self.places[cell.path]
        with suppress(OSError):
            write_text(_said(self.folder, key), json.dumps([place, *news]))

    def end(self) -> None:
        """Take away what was told."""
        for key in self.keys:
            with suppress(OSError):
                _said(self.folder, key).unlink(missing_ok=True)


def _again() -> None:
    """Have this job queued again: what it has trained goes on from its saved state."""
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= RESTARTS:
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", name], check=False)

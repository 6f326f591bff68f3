"""Which cells of a suite run: those without a record, here or elsewhere in the results."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from . import models, records, registry
from .devices import cores, has_bf16, keep_memory, pick_device
from .errors import InputError, reason
from .executors import Executor
from .files import sweep, write_whole
from .lab import Lab, data_digest
from .options import Options
from .progress import bars, say
from .suite import RUNS, Cell, Suite
from .surroundings import surroundings
from .tracking import Track
from .work import Outcome, Tell, Work

# bytes that a cell keeps at least: its record, curves, pictures; its embeddings
SMALLEST = 2**17
EMBEDDINGS = 2**22
# seconds between two looks at what other runs are at
POLL = 1.0
# how often groups that nobody has are handed out without an outcome
ROUNDS = 20
# times the weights: with Adam's two moments
STATE = 3


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Args:
        suite: the grid, as it is saved beside its records.
        options: where and how to run.
        done: cells that have their record.
        taken: cells whose record lies in another folder of the results, with its file.
        todo: cells to run.
        axes: on which the grid is joined with what ran in its folder before.
    """

    suite: Suite
    options: Options
    done: list[Cell]
    taken: list[tuple[Cell, Path]]
    todo: list[Cell]
    axes: Sequence[str]

    @property
    def folder(self) -> Path:
        """The suite's own, below the results' folder."""
        return self.options.out / self.suite.name

    def __str__(self) -> str:
        n = len(self.done) + len(self.taken) + len(self.todo)
        copied = f"{len(self.taken)} copied from other folders of {self.options.out}, "
        return (
            f"{self.suite.name}: {n} cells, {len(self.done)} done, "
            f"{copied if self.taken else ''}{len(self.todo)} to run"
        )


def plan(suite: Suite, cells: Iterable[Cell], options: Options, axes: Sequence[str] = RUNS) -> Plan:
    """Sort cells of a suite by what there is to do."""
    folder = options.out / suite.name
    done: list[Cell] = []
    missing: list[Cell] = []
    for cell in cells:
        (done if (folder / cell.path).exists() else missing).append(cell)
    taken = _elsewhere(missing, options)
    elsewhere = {cell.path for cell, _ in taken}
    todo = [cell for cell in missing if cell.path not in elsewhere]
    return Plan(suite.joined(folder, axes), options, done, taken, todo, axes)


def groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells by training: those of a group differ only in what happens after it.

    They come data set by data set, which are read once, and in each defense by defense with No
    Defense first: it trains the victims that others start from, and processes beside each other
    are at different attacks, so that none waits for what another is making.
    """
    cells = list(cells)
    names = dict.fromkeys(name for cell in cells for name in (cell.dataset, cell.defense))
    order = {name: place for place, name in enumerate(names)}

    def place(cell: Cell) -> tuple[int, bool, int]:
        return order[cell.dataset], cell.defense != "none", order[cell.defense]

    by_training: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=place):
        by_training.setdefault(cell.key, []).append(cell)
    return list(by_training.values())


def _elsewhere(cells: list[Cell], options: Options) -> list[tuple[Cell, Path]]:
    """Records of these cells in any folder of ``out``: benchmarks share cells, which equal specs
    and so equal names tell.

    Only what the same code and versions made on the same device in the same precision (two CPUs
    may bear one name), with all that ``options`` keep beside a record; none with plugins, whose
    code has no commit, or of files of the user's own, which may have changed.
    """
    if options.plugins:
        return []
    names = {cell.path.name for cell in cells if ":" not in cell.dataset}
    there = [
        file
        for file in options.out.glob("*/*/*/*/rate*-seed*-*.json")
        if file.name in names
        and all(file.with_suffix(suffix).exists() for suffix in options.beside())
    ]
    if not there:
        return []
    device = pick_device(options.device)
    here = surroundings(device) | {"bf16": has_bf16(device)}
    # an unknown commit equals nothing, and files may differ from one with a "+"
    if not here["commit"] or here["commit"].endswith("+"):
        return []
    files = {file.name: file for file in there if _made_alike(file, here)}
    return [(cell, files[cell.path.name]) for cell in cells if cell.path.name in files]


def _made_alike(file: Path, here: dict[str, Any]) -> bool:
    """Whether a record was made as it would be here."""
    try:
        made = records.read(file)["surroundings"]
    except (InputError, KeyError):
        return False
    return all(made.get(key) == here[key] for key in ("device", "bf16", "versions", "commit"))


def _take(cell: Cell, file: Path, plan: Plan) -> None:
    """Copy a record that was found elsewhere, and what lies beside it, under the name that the
    method has in this grid.
    """
    path = plan.folder / cell.path
    picture = file.parent.with_name("examples.png")
    if picture.exists():
        write_whole(path.parent.with_name("examples.png"), picture.read_bytes())
    for suffix in plan.options.beside():
        write_whole(path.with_suffix(suffix), file.with_suffix(suffix).read_bytes())
    records.write(path, records.read(file) | {"cell": cell.names})


def check(plan: Plan) -> None:
    """Say what cannot work before the first epoch of any cell.

    Raises:
        InputError: as ``Lab.check`` and ``models.check_start``; or the records of the folder were
            made of other images than the cells name now: of the data sets that are read anyway, and
            of the user's own files.
    """
    todo = plan.todo
    for cell in {(c.dataset, c.attack, c.defense, c.rate): c for c in todo}.values():
        lab = Lab(cell, plan.options)
        # pictures of triggers need no network
        models.check_start(lab.rules.model)
        lab.check()
        # while its images are at hand
        data_digest(cell, plan.options)
    read = {cell.dataset for cell in todo}
    cells = [*plan.done, *(cell for cell, _ in plan.taken), *todo]
    for cell in {c.dataset: c for c in cells if c.dataset in read or ":" in c.dataset}.values():
        _check_data(cell, plan)


def kept(plan: Plan) -> int:
    """About how many bytes a run keeps."""
    each = SMALLEST + (EMBEDDINGS if plan.options.audit else 0)
    each += _network(plan) if plan.options.models else 0
    return each * len(plan.todo)


def _network(plan: Plan) -> int:
    """Bytes of the largest network's weights."""
    names = {cell.rules.model for cell in plan.todo}
    return 4 * max((models.size(name) for name in names), default=0)


def _check_place(plan: Plan) -> None:
    """That files can be written where the results go, and about as much as will be kept."""
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=plan.folder) as file:
            file.write(b"x")
            file.flush()
        free = shutil.disk_usage(plan.folder).free
    except (OSError, ValueError) as error:
        raise InputError(f"--out: nothing can be written ({reason(error)})") from error
    # a state, which holds the optimizer's, and the next one, which is being written
    needed = kept(plan) + 2 * STATE * _network(plan)
    if free < needed:
        raise InputError(
            f"{plan.folder}: {free / 2**20:.0f} MiB are free, the run may keep "
            f"{needed / 2**20:.0f} MiB; give another --out"
        )


def _check_data(cell: Cell, plan: Plan) -> None:
    folder = plan.folder
    there = records.read_all(folder / cell.path.parents[2])
    made = {record["surroundings"].get("data") for record in there} - {None}
    try:
        now = data_digest(cell, plan.options) if made else None
    except InputError:
        # tables of finished records can be written where their data are not
        return
    if made - {now}:
        raise InputError(
            f"{cell.dataset}: the images are not those that the records in {folder} were made of; "
            "give another --out, or delete the records"
        )


def usual(plan: Plan, jobs: int | None = None) -> Executor:
    """The executor for this machine: ``jobs`` trainings at a time; if not given, one a core on a
    CPU, where two small networks train faster beside each other than one on two cores, and one on
    a GPU.
    """
    if jobs is None:
        on_cpu = pick_device(plan.options.device).type == "cpu"
        jobs = min(cores(), len(groups(plan.todo))) if on_cpu else 1
    name = "serial" if jobs <= 1 else f"processes[jobs={jobs}]"
    executor: Executor = registry.create("executors", name)
    return executor


def run(
    plan: Plan,
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    console: Console | None = None,
    track: Track | None = None,
) -> list[Outcome]:
    """Do what is planned; a failed cell leaves a ``.failed`` file and is tried again next time.

    Args:
        jobs: trainings at a time, as ``usual`` has it; or
        executor: what runs the groups.
        track: is handed every new record.

    Raises:
        InputError: what cannot work is said before the first epoch of any cell.
    """
    console = console or Console(stderr=True)
    keep_memory()
    _check_place(plan)
    for cell, file in plan.taken:
        _take(cell, file, plan)
    check(plan)
    sweep(plan.options.out)
    # now, so that a grid of one's own can be asked about while it runs, or after a kill
    plan.suite.save(plan.folder, plan.axes)
    work = Work(plan.folder, plan.options)
    outcomes: list[Outcome] = []
    if plan.todo:
        executor = executor or usual(plan, jobs)
        with bars(console, "cells") as told:
            told("cells", "", 0, len(plan.todo))

            def tell(cell: Cell, stage: str, done: int, total: int) -> None:
                told(str(cell), stage, done, total)

            for outcome in outcomes_of(executor, groups(plan.todo), work, tell, console):
                outcomes.append(outcome)
                if track and outcome.record:
                    track(outcome.record)
                told("cells", "", len(outcomes), len(plan.todo))
                say(console, f"[{len(outcomes)}/{len(plan.todo)}] {outcome}")
    _clean_up(plan, work)
    return outcomes


def outcomes_of(
    executor: Executor, left: list[list[Cell]], work: Work, tell: Tell, console: Console
) -> Iterator[Outcome]:
    """What became of every cell. Groups that another run has, or waits for, are looked at again
    when that is free: they then have their records, or are to be run here.
    """
    rounds = 0
    while left:
        seen: set[Path] = set()
        for ended in executor.run(left, work, tell):
            seen |= {outcome.cell.path for outcome in ended}
            yield from ended
        left = [[cell for cell in group if cell.path not in seen] for group in left]
        left = [group for group in left if group]
        rounds = 0 if seen else rounds + 1
        if rounds > ROUNDS:
            why = f"{type(executor).__name__.lower()} gave no outcome"
            yield from (work.failed(cell, why, why) for group in left for cell in group)
            return
        if left and all(who := [work.awaits(group) for group in left]):
            cells = sum(map(len, left))
            say(console, f"waiting for {cells} cells, the first with {who[0]}")
            while all(work.awaits(group) for group in left):
                time.sleep(POLL)


def _clean_up(plan: Plan, work: Work) -> None:
    """Take away the state of every training whose cells all have their record."""
    for group in groups(plan.suite.known()):
        if all((plan.folder / cell.path).exists() for cell in group):
            shutil.rmtree(work.state(group), ignore_errors=True)

"""Runs the cells of a suite that have no record yet; cells that share a training share it, and a
killed run goes on where it was.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from . import datasets, models, plots, records, registry
from .api import Attack, Defense
from .devices import has_bf16, keep_memory, pick_device
from .engine import Audit, Engine, check_per_class, seed_of
from .engine import Progress as Report
from .errors import InputError
from .files import once, write_whole
from .images import Images, Poisoned
from .progress import bars
from .protocols import Protocol
from .suite import Cell, Suite, digest

# in a worker: the queue that tells the parent of finished epochs
_epochs: Any = None


@dataclass(frozen=True)
class Options:
    """Where and how to run; nothing here changes what is computed (another device, or ``compile``,
    rounds differently).

    Args:
        out: folder that holds one folder a suite.
        data: folder of the data sets' files.
        download: let torchvision fetch what is missing.
        device: "auto", "cpu", "cuda:0", ...
        models: keep the network of every cell beside its record, as ``.safetensors``.
        compile: mode of ``torch.compile`` for plain training, "" for none.
        audit: log the loss of clean and of poisoned training images, and CA, ASR and ARR of some
            test images, after every epoch, and keep what the networks make of some test images
            beside the record, as ``.embeddings``; no defense sees any of it.
        plugins: files registered with ``--plugin``, for worker processes.
    """

    out: Path = Path("runs")
    data: Path | None = None
    download: bool = False
    device: str = "auto"
    models: bool = False
    compile: str = ""
    audit: bool = False
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its record, or the error that ended it."""

    cell: Cell
    record: records.Record | None
    error: str = ""


@lru_cache(maxsize=1)
def _load(dataset: str, data: Path | None, download: bool) -> datasets.Splits:
    return datasets.load(dataset, data, download=download)


@cache
def _data_digest(dataset: str, data: Path | None, download: bool) -> str:
    return datasets.digest(_load(dataset, data, download))


def data_digest(cell: Cell, options: Options) -> str:
    """The digest of a cell's clean images: files may change behind a name."""
    return _data_digest(cell.dataset, options.data, options.download)


def poison_digest(poisoned: Poisoned, triggered: Poisoned) -> str:
    """What a cell's attack made of its images, poisoned, cover and triggered test ones: a trigger
    that is learned anew, elsewhere, is another one.
    """
    return datasets.digest((poisoned[poisoned.mask | poisoned.cover], triggered))


def hold_out(train: Images, share: float, seed: int) -> Tensor:
    """Who is held back as the clean reserve, the same share of every class: bool (n,)."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(train), dtype=torch.bool)
    for label in range(len(train.classes)):
        own = order[train.y[order] == label]
        held[own[: round(share * len(own))]] = True
    return held


@dataclass(frozen=True)
class Parts:
    """What a cell is made of, on its device, before anything is trained."""

    attack: Attack
    defense: Defense
    rules: Protocol
    reserve: Images
    train: Images
    test: Images
    supplied: Poisoned | None = None

    def triggered(self) -> Poisoned:
        """The test images that ASR and ARR count."""
        return (
            self.attack.test_set(self.test, self.rules.target)
            if self.supplied is None
            else self.supplied
        )


def parts(cell: Cell, options: Options) -> Parts:
    """Everything that can be said of a cell without training.

    Raises:
        InputError: data that cannot be read, a trigger that does not fit, a rate that the pool
            cannot give, too few clean images.
    """
    train, test = _load(cell.dataset, options.data, options.download)
    rules = cell.protocol.on(cell.dataset)
    device = pick_device(options.device)
    held = hold_out(train, rules.reserve, seed_of(cell.seed, "reserve"))
    reserve = train[held]
    rest = train[~held]
    attack, defense = cell.methods()
    needed = 1 if defense.clean_images is None else defense.clean_images
    if needed > len(reserve):
        share = f"{100 * rules.reserve:g} % of {cell.dataset}"
        raise InputError(
            f"{cell.defense} needs {needed} clean images, but the protocol's reserve ({share}) "
            f"holds {len(reserve)}"
        )
    if defense.clean_per_class:
        check_per_class(
            reserve.y.bincount(minlength=len(train.classes)).tolist(),
            defense.clean_per_class,
            train.classes,
            rules,
        )
    try:
        attack.check(rest.x[:1].float() / 255)
        if not attack.supplies:
            attack.choose(
                rest,
                target=rules.target,
                rate=cell.rate,
                rng=torch.Generator(),
                spare_target=rules.spare_target,
            )
    except InputError as error:
        raise InputError(f"{cell.attack} on {cell.dataset}: {error}") from error
    return Parts(attack, defense, rules, reserve.to(device), rest.to(device), test.to(device))


def _shared(cell: Cell, options: Options, name: str, *keys: str, **more: str) -> Path:
    """The file of something that all cells share in which data set, protocol, seed, ``keys`` of the
    spec and ``more`` are equal.
    """
    spec = cell.spec() | {"data": data_digest(cell, options)}
    name = name.replace("/", "_").replace(":", "_")
    shared = ("dataset", "data", "protocol", "seed", *keys)
    key = digest({part: spec[part] for part in shared} | more)
    return options.out / ".shared" / f"{name}-{key}.safetensors"


def fitted(cell: Cell, options: Options, found: Parts, progress: Report | None = None) -> Attack:
    """The attack of a cell, which has learned its trigger, from images that are all clean."""
    attack = found.attack
    device = pick_device(options.device)
    if not attack.learns:
        return attack
    file = _shared(cell, options, registry.parse(cell.attack)[0], "attack")
    victim = _shared(cell, options, "clean")
    state = file.with_suffix(".state")
    seed = seed_of(cell.seed, "attack")

    def learn() -> Mapping[str, Tensor]:
        return attack.fit(
            found.train,
            Engine(
                found.rules,
                found.train,
                seed=seed,
                device=device,
                state=state,
                progress=progress,
                victim=victim,
            ),
        )

    return attack.fitted(once(file, device, learn))


def prepare(cell: Cell, options: Options, progress: Report | None = None) -> tuple[Parts, Poisoned]:
    """What a cell works on, with the fitted attack, and the poisoned training set.

    Raises:
        InputError: as ``parts``.
    """
    found = parts(cell, options)
    if found.attack.supplies:
        return _supplied(cell, options, found)
    attack = fitted(cell, options, found, progress)
    rules = found.rules
    device = pick_device(options.device)
    rng = torch.Generator().manual_seed(seed_of(cell.seed, "poison"))
    poisoned = attack.poison(
        found.train, target=rules.target, rate=cell.rate, rng=rng, spare_target=rules.spare_target
    )
    if attack.refines:
        file = _shared(
            cell, options, f"{registry.parse(cell.attack)[0]}-poisoned", "attack", "rate"
        )
        state = file.with_suffix(".state")
        seed = seed_of(cell.seed, "refine")

        def refine() -> Mapping[str, Tensor]:
            return {
                "x": attack.refine(
                    found.train,
                    poisoned,
                    Engine(
                        rules, found.train, seed=seed, device=device, state=state, progress=progress
                    ),
                )
            }

        poisoned.x[poisoned.mask] = once(file, device, refine)["x"]
    return replace(found, attack=attack), poisoned


def _supplied(cell: Cell, options: Options, found: Parts) -> tuple[Parts, Poisoned]:
    """Images, and perhaps a victim, that an attack has from elsewhere."""
    train, test = _load(cell.dataset, options.data, options.download)
    device = pick_device(options.device)
    seed = seed_of(cell.seed, "poison")
    folder = _shared(cell, options, registry.parse(cell.attack)[0], "attack", "rate").with_suffix(
        ""
    )
    held = hold_out(train, found.rules.reserve, seed_of(cell.seed, "reserve"))
    rng = torch.Generator().manual_seed(seed)
    poisoned, triggered = found.attack.supply(
        train, test, held, target=found.rules.target, rate=cell.rate, rng=rng, folder=folder
    )
    poisoned = poisoned.to(device)
    triggered = triggered.to(device)
    state = found.attack.victim(Engine(found.rules, poisoned.observed(), device=device).new_model())
    if state is not None:
        file = victim_file(cell, options, poison_digest(poisoned, triggered))
        once(
            file,
            device,
            lambda: {**state, "log.seconds": torch.zeros(()), "log.images": torch.zeros(())},
        )
    return replace(found, supplied=triggered), poisoned


def victim_file(cell: Cell, options: Options, poison: str) -> Path:
    """Where the network lies that was trained without defense on the cell's images, of that
    ``poison_digest``; ``Engine.victim`` makes it.
    """
    return _shared(cell, options, "victim", "attack", "rate", poison=poison)


def specimen(cell: Cell, options: Options, progress: Report | None = None) -> tuple[Images, Images]:
    """Up to 500 images before and after the attack, the same ones for every attack: test images, or
    training images where those are more than triggered.
    """
    found, poisoned = prepare(cell, options, progress)
    return _pairs(found, poisoned)


def _pairs(found: Parts, poisoned: Poisoned) -> tuple[Images, Images]:
    if found.attack.refines or found.attack.supplies:
        index = poisoned.mask.nonzero().flatten()[:500]
        return found.train[index].to("cpu"), poisoned[index].to("cpu")
    clean = found.test[torch.arange(min(500, len(found.test)), device=found.test.y.device)]
    return clean.to("cpu"), replace(clean, x=found.attack.stamp(clean.x)).to("cpu")


def run_cell(
    cell: Cell,
    options: Options,
    state: Path | None = None,
    progress: Any = None,
    pictures: Path | None = None,
) -> tuple[records.Record, nn.Module, dict[str, Tensor]]:
    """Poison, train, measure: the record of one cell, its network, and with ``audit`` what
    ``Engine.embeddings`` gives.

    Args:
        state: folder in which the training keeps its state, to go on from after a kill.
        progress: as ``Engine`` calls it.
        pictures: where to draw what the trigger does to test images, if not drawn yet.
    """
    device = pick_device(options.device)
    begun = time.perf_counter()
    found, poisoned = prepare(cell, options, progress)
    defense = found.defense
    reserve = found.reserve
    test = found.test
    triggered = found.triggered()
    if pictures and not pictures.with_suffix(".png").exists():
        before, after = _pairs(found, poisoned)
        plots.save(plots.examples(before.x[:8], after.x[:8], cell.attack), pictures, ("png",))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    train = poisoned.observed()
    poison = poison_digest(poisoned, triggered)
    seed = seed_of(cell.seed, "training")
    victim = victim_file(cell, options, poison)
    audit = _audit(poisoned, test, triggered, cell.seed) if options.audit else None
    told = {"progress": progress, "compile": options.compile, "audit": audit}
    engine = Engine(
        found.rules, train, reserve, seed=seed, device=device, state=state, victim=victim, **told
    )
    poisoning = time.perf_counter() - begun
    trained = defense.fit(train, engine)
    begun = time.perf_counter()
    net = defense.finish(trained, engine)
    metrics, probes = engine.measure_all(net, test, triggered)
    embeddings = engine.embeddings(net, test, triggered) if options.audit else {}
    book = engine.log_book
    record = {
        "format": records.FORMAT,
        "spec": cell.spec(),
        "cell": {"dataset": cell.dataset, "attack": cell.attack, "defense": cell.defense},
        "metrics": metrics,
        "probes": probes,
        "curves": book.curves,
        "given": {
            "train_images": len(train),
            "poisoned": int(poisoned.mask.sum()),
            "cover": int(poisoned.cover.sum()),
            "clean_images": book.clean_given,
        },
        "model": {"parameters": models.parameters(net)},
        "time": {
            "poisoning": poisoning,
            "training": sum(book.seconds.values()),
            "stages": book.seconds,
            "evaluation": time.perf_counter() - begun,
            "images_per_second": book.images / sum(book.seconds.values())
            if sum(book.seconds.values())
            else None,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else None,
        },
        "surroundings": records.surroundings(device)
        | {
            "data": data_digest(cell, options),
            "poison": poison,
            "bf16": engine.bf16,
            "compile": engine.compile,
        }
        | {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    return record, net, embeddings


def _audit(poisoned: Poisoned, test: Images, triggered: Poisoned, seed: int) -> Audit:
    """500 training images of each sort, and 1,000 test images and 1,000 triggered ones."""
    sorts = {"clean": ~poisoned.mask & ~poisoned.cover, "poisoned": poisoned.mask}
    train = poisoned.observed()
    rng = torch.Generator().manual_seed(seed_of(seed, "audit"))
    chosen, bad = (
        torch.randperm(len(images), generator=rng)[:1000] for images in (test, triggered)
    )
    return Audit(
        {name: train[own.nonzero().flatten()[:500]] for name, own in sorts.items() if own.any()},
        test[chosen],
        triggered[bad],
    )


def _run_group(
    cells: list[Cell], folder: Path, options: Options, progress: Any = None
) -> list[Outcome]:
    """The cells of one training that have no record yet, one process at a time."""
    state = folder / ".state" / digest(cells[0].training_spec())
    state.parent.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with FileLock(f"{state}.lock"):
        for cell in cells:
            path = folder / cell.path()
            # another process was here while this one waited
            if path.exists():
                outcomes.append(Outcome(cell, records.read(path)))
                continue
            try:
                record, net, embeddings = run_cell(
                    cell,
                    options,
                    state,
                    progress and partial(progress, cell),
                    path.parent.parent / "examples",
                )
                # before the record, which says that the cell is done
                if embeddings:
                    write_whole(
                        path.with_suffix(".embeddings"),
                        save({name: part.cpu() for name, part in embeddings.items()}),
                    )
                if options.models:
                    write_whole(
                        path.with_suffix(".safetensors"),
                        models.pack(net, record["spec"]["protocol"]["model"]),
                    )
            except Exception as error:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".failed").write_text(traceback.format_exc())
                outcomes.append(Outcome(cell, None, f"{type(error).__name__}: {error}"))
            else:
                records.write(path, record)
                outcomes.append(Outcome(cell, record))
    return outcomes


def _in_worker(cells: list[Cell], folder: Path, options: Options) -> list[Outcome]:
    return _run_group(cells, folder, options, lambda *news: _epochs.put(news))


def _start_worker(parent: int, options: Options, threads: int, epochs: Any) -> None:
    """Make this worker end when the process that started it does, however that ended: nobody would
    read what it trains.
    """
    global _epochs
    _epochs = epochs
    torch.set_num_threads(threads)
    keep_memory()
    for file in options.plugins:
        registry.add_file(file)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells by training: those of a group differ only in what happens after it.

    They come data set by data set, which are read once, and in each defense by defense with No
    Defense first: it trains the victims that others start from, and processes beside each other are
    at different attacks, so that none waits for what another is making.
    """
    found: dict[str, list[Cell]] = {}
    cells = list(cells)
    order = list(dict.fromkeys(name for cell in cells for name in (cell.dataset, cell.defense)))
    for cell in sorted(
        cells, key=lambda c: (order.index(c.dataset), c.defense != "none", order.index(c.defense))
    ):
        found.setdefault(digest(cell.training_spec()), []).append(cell)
    return list(found.values())


def missing(suite: Suite, cells: Iterable[Cell], options: Options) -> list[Cell]:
    """The cells without a record."""
    return [cell for cell in cells if not (options.out / suite.name / cell.path()).exists()]


def elsewhere(cells: list[Cell], options: Options) -> list[tuple[Cell, Path]]:
    """Records of these cells in any folder of ``out``: benchmarks share cells, which equal specs
    and so equal names tell.

    Only what the same code and versions made on the same device in the same precision (two CPUs may
    bear one name), with all that ``options`` keep beside a record; none with plugins, whose code
    has no commit, or of files of the user's own, which may have changed.
    """
    names = (
        set()
        if options.plugins
        else {cell.path().name for cell in cells if ":" not in cell.dataset}
    )
    there = [
        file
        for file in options.out.glob("*/*/*/*/rate*-seed*-*.json")
        if file.name in names and all(file.with_suffix(s).exists() for s in _beside(options))
    ]
    if not there:
        return []
    device = pick_device(options.device)
    here = records.surroundings(device) | {"bf16": has_bf16(device)}
    # files differ from it
    if here["commit"].endswith("+"):
        return []

    def same(file: Path) -> bool:
        try:
            made = records.read(file)["surroundings"]
        except (InputError, KeyError):
            return False
        return all(made.get(key) == here[key] for key in ("device", "bf16", "versions", "commit"))

    files = {file.name: file for file in there if same(file)}
    return [(cell, files[name]) for cell in cells if (name := cell.path().name) in files]


def _check_data(folder: Path, cells: list[Cell], todo: list[Cell], options: Options) -> None:
    """Look whether the records of a folder were made of the images that ``cells`` name now: of the
    data sets of ``todo``, and of the user's own files.

    Raises:
        InputError: they were not.
    """
    # which are read already
    needed = {cell.dataset for cell in todo}
    for cell in {c.dataset: c for c in cells if c.dataset in needed or ":" in c.dataset}.values():
        made = {
            record["surroundings"].get("data")
            for record in records.read_all(folder / cell.path().parents[2])
        } - {None}
        try:
            now = data_digest(cell, options) if made else None
        except InputError:
            # tables of finished records can be written where their data are not
            continue
        if made - {now}:
            raise InputError(
                f"{cell.dataset}: the images are not those that the records in {folder} were made "
                "of; give another --out, or delete the records"
            )


def _beside(options: Options) -> list[str]:
    return [".embeddings"] * options.audit + [".safetensors"] * options.models


def _take(cell: Cell, file: Path, folder: Path, options: Options) -> None:
    """Copy a record that ``elsewhere`` found, and what lies beside it, under the name that the
    method has in this grid.
    """
    path = folder / cell.path()
    if (picture := file.parent.with_name("examples.png")).exists():
        write_whole(path.parent.with_name("examples.png"), picture.read_bytes())
    for suffix in _beside(options):
        write_whole(path.with_suffix(suffix), file.with_suffix(suffix).read_bytes())
    records.write(
        path,
        records.read(file)
        | {"cell": {"dataset": cell.dataset, "attack": cell.attack, "defense": cell.defense}},
    )


def run(
    suite: Suite,
    cells: list[Cell],
    options: Options,
    *,
    jobs: int | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Run the cells that have no record yet and write a record each; a failed one leaves a
    ``.failed`` file and is tried again next time.

    What ``elsewhere`` finds is copied and not run.

    Args:
        cells: those of ``suite.cells()`` to run.
        jobs: trainings at a time, each in a process of its own; if not given, one a core on a CPU,
            where two small networks train faster beside each other than one on two cores, and one
            on a GPU.

    Raises:
        InputError: what cannot work is said before the first epoch of any cell.
    """
    console = console or Console(stderr=True)
    folder = options.out / suite.name
    keep_memory()
    for cell, file in elsewhere(missing(suite, cells, options), options):
        _take(cell, file, folder, options)
    todo = missing(suite, cells, options)
    for cell in {(c.dataset, c.attack, c.defense, c.rate): c for c in todo}.values():
        parts(cell, options)
        # while its images are at hand
        data_digest(cell, options)
    _check_data(folder, cells, todo, options)
    # now, so that a grid of one's own can be asked about while it runs, or after a kill
    suite.save(folder)
    if jobs is None:
        jobs = (
            min(os.cpu_count() or 1, len(groups(todo)))
            if pick_device(options.device).type == "cpu"
            else 1
        )
    outcomes: list[Outcome] = []
    with bars(console, "cells") as told:
        if todo:
            told("cells", "", 0, len(todo))

        def epoch(cell: Cell, stage: str, done: int, total: int) -> None:
            told(label(cell), stage, done, total)

        def report(finished: list[Outcome]) -> None:
            for outcome in finished:
                outcomes.append(outcome)
                told("cells", "", len(outcomes), len(todo))
                console.print(
                    f"[{len(outcomes)}/{len(todo)}] {describe(outcome)}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )

        if jobs <= 1:
            for group in groups(todo):
                report(_run_group(group, folder, options, epoch))
        else:
            _parallel(todo, folder, options, jobs, report, epoch)
    for group in groups(suite.cells()):
        if not missing(suite, group, options):
            shutil.rmtree(folder / ".state" / digest(group[0].training_spec()), ignore_errors=True)
    return outcomes


def _parallel(
    todo: list[Cell],
    folder: Path,
    options: Options,
    jobs: int,
    report: Callable[[list[Outcome]], None],
    epoch: Callable[..., None],
) -> None:
    """The groups of ``todo`` in ``jobs`` processes: what a process that dies was at can be run
    again.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    epochs = context.Queue()
    with ProcessPoolExecutor(
        jobs, context, _start_worker, (os.getpid(), options, threads, epochs)
    ) as pool:
        futures = {pool.submit(_in_worker, group, folder, options): group for group in groups(todo)}
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            while not epochs.empty():
                epoch(*epochs.get())
            for future in finished:
                try:
                    report(future.result())
                except BrokenProcessPool as error:
                    report(
                        [
                            Outcome(cell, None, f"its process died: {error}")
                            for cell in futures[future]
                        ]
                    )


def label(cell: Cell) -> str:
    """How a cell is called in progress bars and lines."""
    return f"{cell.dataset} {cell.attack} {cell.defense} rate {cell.rate:g} seed {cell.seed}"


def describe(outcome: Outcome) -> str:
    """One line on a finished or failed cell."""
    name = label(outcome.cell)
    if outcome.record is None:
        return f"{name} FAILED {outcome.error}"
    numbers = "  ".join(
        f"{m.upper()} {100 * hits / n:.2f}" for m, (hits, n) in outcome.record["metrics"].items()
    )
    return f"{name}  {numbers}  ({outcome.record['time']['training']:.0f} s)"

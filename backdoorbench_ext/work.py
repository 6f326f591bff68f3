"""Cells that share a training, one after the other: a record each, or why it failed."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from . import models, records, registry, signals, tune
from .devices import keep_memory
from .engine import Engine
from .errors import InputError, one_line, told
from .files import Held, held, holder, locked, without_waiting, write_text, write_whole
from .images import Poisoned, spread
from .lab import Lab, data_digest
from .metrics import pack, suspicion
from .options import Options
from .reading import whole_png
from .suite import Cell
from .surroundings import surroundings

# (cell, stage, how many done, how many in all)
Tell = Callable[[Cell, str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its record, or the error that ended it."""

    cell: Cell
    record: records.Record | None
    error: str = ""

    def __str__(self) -> str:
        """One line on a finished or failed cell."""
        if self.record is None:
            return one_line(f"{self.cell} FAILED {self.error}")
        counts = self.record["metrics"].items()
        numbers = "  ".join(f"{m.upper()} {100 * hits / n:.2f}" for m, (hits, n) in counts if n)
        return one_line(f"{self.cell}  {numbers}  ({self.record['time']['training']:.0f} s)")


@dataclass(frozen=True)
class Result:
    """What running a cell gives: its record, its network, and with an audit embeddings by name."""

    record: records.Record
    net: nn.Module
    embeddings: dict[str, Tensor]


def run_cell(lab: Lab, state: Path | None = None, pictures: Path | None = None) -> Result:
    """Poison, train and measure.

    Args:
        lab: of the cell.
        state: folder in which the training keeps its state, to go on from after a kill.
        pictures: where to draw what the trigger does to test images, if not drawn yet.
    """
    begun = time.perf_counter()
    defense = lab.defense
    triggered = lab.triggered
    if pictures and not whole_png(pictures.with_suffix(".png")):
        _draw(lab, pictures)
    cuda = lab.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(lab.device)
    engine = lab.engine(state)
    poisoning = time.perf_counter() - begun
    trained = defense.fit(lab.poisoned.observed(), engine)
    begun = time.perf_counter()
    net = defense.finish(trained, engine)
    _settled(net, lab, engine)
    hits, probes = engine.measure_all(net, lab.test, triggered)
    embeddings = engine.embeddings(net, lab.test, triggered) if lab.options.audit else {}
    spent = {
        "poisoning": poisoning,
        **_training(engine),
        "evaluation": time.perf_counter() - begun,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(lab.device) if cuda else None,
    }
    record: dict[str, Any] = {
        "format": records.FORMAT,
        "spec": lab.cell.spec,
        "cell": lab.cell.names,
        "metrics": counts(hits),
        "hits": {name: pack(own) for name, own in hits.items()},
        "probes": {name: counts(own) for name, own in probes.items()},
        "suspects": _suspects(engine, lab.poisoned),
        "curves": engine.log_book.curves,
        "trigger": lab.attack_book.curves,
        "given": _given(engine, lab.poisoned),
        "model": {"parameters": models.parameters(net)},
        "time": spent,
        "surroundings": _surroundings(lab, engine),
    }
    if how := tune.tuned(lab.options.out, lab.cell):
        record["tuned"] = how
    return Result(record, net, embeddings)


def _settled(net: nn.Module, lab: Lab, engine: Engine) -> None:
    """Have the result measured with BatchNorm's statistics taken anew on the clean reserve, too:
    running statistics can hide a backdoor that the weights still hold.
    """
    enough = len(lab.reserve) >= lab.rules.recipe.batch_size
    if isinstance(net, models.Net) and models.norms(net) and enough:
        engine.probe("BatchNorm settled", engine.settle(copy.deepcopy(net), lab.reserve))


def counts(hits: dict[str, Tensor]) -> dict[str, list[int]]:
    """[hits, images] of each metric."""
    return {name: [int(own.sum()), len(own)] for name, own in hits.items()}


def _draw(lab: Lab, pictures: Path) -> None:
    from .pictures import examples
    from .plots import save as save_figure

    before, after = lab.specimen()
    # a record without a training set has triggered images alone, not what they were before
    if not len(before):
        return
    shown = spread(8, len(before))
    save_figure(examples(before.x[shown], after.x[shown], lab.cell.attack), pictures, ("png",))


def _training(engine: Engine) -> dict[str, Any]:
    """Seconds of the loops, whole and by stage, and the speed."""
    book = engine.log_book
    seconds = sum(book.seconds.values())
    return {
        "training": seconds,
        "stages": book.seconds,
        "images_per_second": book.images / seconds if seconds else None,
    }


def _given(engine: Engine, poisoned: Poisoned) -> dict[str, int]:
    """How many images there were of each sort."""
    return {
        "train_images": len(poisoned),
        "poisoned": int(poisoned.mask.sum()),
        "cover": int(poisoned.cover.sum()),
        "clean_images": engine.log_book.clean_given,
    }


def _suspects(engine: Engine, poisoned: Poisoned) -> dict[str, dict[str, float | None]]:
    """How well each score that the defense gave finds the poisoned images."""
    found = {}
    for name, (scores, flagged, other) in engine.log_book.suspects.items():
        mask = poisoned.mask if other is None else other
        flags = None if flagged is None else flagged.cpu().numpy()
        found[name] = suspicion(mask.cpu().numpy(), scores.cpu().numpy(), flags)
    return found


def _surroundings(lab: Lab, engine: Engine) -> dict[str, Any]:
    return surroundings(lab.device) | {
        "data": data_digest(lab.cell, lab.options),
        "poison": lab.poison_digest,
        "bf16": engine.bf16,
        "compile": engine.compile,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@dataclass(frozen=True)
class Work:
    """What executors run: cells whose records lie in a suite's folder.

    Args:
        folder: the suite's.
        options: where and how to run.
    """

    folder: Path
    options: Options

    def ready(self, threads: int) -> None:
        """Make a new process fit to run: its threads, its memory, the user's plugins."""
        torch.set_num_threads(threads)
        keep_memory()
        for file in self.options.plugins:
            registry.add_file(file)

    def run(self, cells: Sequence[Cell], tell: Tell | None = None) -> list[Outcome]:
        """The cells of one training, by one process at a time; none if another has them, or is
        making what they need.

        A cell that has its record by now is not run again; one that fails leaves its reason beside
        where its record would lie, and the others go on.
        """
        state = self.state(cells)
        awaited = state.with_suffix(".awaits")
        try:
            with without_waiting(), locked(state):
                awaited.unlink(missing_ok=True)
                return [self._run(cell, state, tell and partial(tell, cell)) for cell in cells]
        except Held as other:
            if other.path != state:
                write_text(awaited, str(other.path))
            return []
        except (OSError, InputError) as error:
            return [self.failed(cell, told(error), told(error) + "\n") for cell in cells]

    def awaits(self, cells: Sequence[Cell]) -> str:
        """Who has what the cells of a training wait for, "" if nobody has."""
        state = self.state(cells)
        needed = [state]
        with suppress(OSError):
            needed.append(Path(state.with_suffix(".awaits").read_text("utf-8")))
        return next((holder(path) for path in needed if held(path)), "")

    def state(self, cells: Sequence[Cell]) -> Path:
        """The folder of the state of the training that these cells share."""
        return self.folder / ".state" / cells[0].key

    def finished(self, cell: Cell) -> Outcome | None:
        """The outcome of a cell that has its record."""
        path = self.folder / cell.path
        return Outcome(cell, records.read(path)) if path.exists() else None

    def why(self, cell: Cell, since: float) -> Outcome | None:
        """The outcome of a cell that has failed at ``since``, seconds of the epoch, or later."""
        path = self.folder / cell.path
        with suppress(OSError):
            if path.with_suffix(".failed").stat().st_mtime >= since:
                return Outcome(cell, None, records.why_failed(path) or "")
        return None

    def failed(self, cell: Cell, error: str, reason: str) -> Outcome:
        """The outcome of a cell that failed; ``reason`` goes into its file, whose last line is what
        ``bbx status`` shows.

        Raises:
            Stopped: it did not fail, a signal ended it.
        """
        signals.check()
        path = self.folder / cell.path
        # the error is the last line, below what PyTorch adds to its own
        text = reason.rstrip()
        text += "" if text.endswith(error) else f"\n\n{error}"
        # a disk that is full has no room for the reason either
        with suppress(OSError):
            write_text(path.with_suffix(".failed"), text + "\n")
        return Outcome(cell, None, error)

    def _run(self, cell: Cell, state: Path, progress: Any) -> Outcome:
        path = self.folder / cell.path
        try:
            if done := self.finished(cell):
                return done
            lab = Lab(cell, self.options, progress)
            result = run_cell(lab, state, path.parent.parent / "examples")
            self._keep(result, path)
            records.write(path, result.record)
        except Held:
            raise
        # a method may do anything, even end the process
        except (Exception, SystemExit) as error:
            return self.failed(cell, told(error), traceback.format_exc())
        return Outcome(cell, result.record)

    def _keep(self, result: Result, path: Path) -> None:
        """What lies beside a record, written before it: a record says that the cell is done."""
        if result.embeddings:
            tensors = {name: part.cpu() for name, part in result.embeddings.items()}
            write_whole(path.with_suffix(".embeddings"), save(tensors))
        if self.options.models:
            model = result.record["spec"]["protocol"]["model"]
            write_whole(path.with_suffix(".safetensors"), models.pack(result.net, model))

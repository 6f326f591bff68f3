"""What ``import backdoorbench_ext as bbx`` offers: the steps of a cell one by one, and whole grids.

The steps are those of ``bbx run``: the same names, seed and protocol give the same network and the
same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from . import datasets, registry
from . import records as kept
from .api import Attack, Defense, Method
from .errors import InputError
from .frame import frame
from .images import Images
from .lab import Lab
from .metrics import COUNTED, get
from .models import unpack
from .options import Options
from .protocols import Protocol, named
from .reading import content
from .suite import Suite, load
from .weights import named as named_with

if TYPE_CHECKING:
    import pandas as pd


def load_data(
    name: str, data: str | Path | None = None, *, download: bool = False
) -> tuple[Images, Images]:
    """A data set's training and test images: ``x`` uint8 (n, 3, h, w), ``y`` int64 (n,).

    Args:
        name: as ``--dataset`` takes it: ``"cifar10[train=10000]"``, ``"folder:PATH"``.
        data: the folder of its files; ``download``: let torchvision fetch what is missing there.

    Raises:
        InputError: no such data set, or files that cannot be read.
    """
    return datasets.load(name, Path(data) if data else None, download=download)


def attack(name: str, **options: Any) -> Attack:
    """An attack: ``attack("blend", alpha=0.2)``.

    Raises:
        InputError: an unknown name or option, or a value out of range.
    """
    made: Attack = registry.create("attacks", registry.join(name, options))
    return made


def defense(name: str, **options: Any) -> Defense:
    """A defense: ``defense("cbd", t1=3)``.

    Raises:
        InputError: as ``attack``.
    """
    made: Defense = registry.create("defenses", registry.join(name, options))
    return made


def plugin(file: str | Path) -> None:
    """Add what a ``.py`` file holds, an attack or a defense by its file's name, for one, as
    ``--plugin`` does.

    Raises:
        InputError: the file cannot be read, or its name is taken.
    """
    registry.add_file(Path(file))


def poison(
    attack: str | Attack,
    dataset: str,
    *,
    rate: float = 0.1,
    seed: int = 0,
    protocol: str | Protocol = "cbd",
    epochs: int | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    out: str | Path = "runs",
) -> Lab:
    """Poison a data set. What comes back holds ``poisoned`` (with ``mask``: which images are),
    ``reserve`` (clean images that a defense may be given), ``test`` and ``triggered``.

    Args:
        rate: share of all training images.
        protocol, epochs, model, weights: as ``bbx run`` has them; a protocol may be an object, too.
        out: folder in which what takes long is kept, such as learned triggers and victims.

    Raises:
        InputError: as ``Lab.check``.
    """
    rules = named(protocol) if isinstance(protocol, str) else protocol
    grid = Suite("python", rules, (dataset,), (_text(attack),), ("none",), (rate,), (seed,))
    file = Path(weights) if weights else None
    (cell,) = grid.changed(epochs=epochs, model=named_with(file, model, rules.model)).cells()
    options = Options(out=Path(out), data=Path(data) if data else None, weights=file, device=device)
    lab = Lab(cell, options)
    lab.check()
    return lab


def _text(method: str | Method) -> str:
    """The name of a method, with the options that are not its defaults."""
    if isinstance(method, str):
        return method
    name = registry.called(type(method))
    given = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    usual = registry.create(_kind(method), name)
    return registry.join(name, {k: v for k, v in given.items() if v != getattr(usual, k)})


def _kind(method: Method) -> str:
    return "attacks" if isinstance(method, Attack) else "defenses"


def train(defense: str | Defense, lab: Lab) -> nn.Module:
    """Train on what ``poison`` gave, with a defense; ``"none"`` is ordinary training.

    Returns:
        A network in eval mode: float (n, 3, h, w) in [0, 1] -> logits (n, classes).

    Raises:
        InputError: as ``Lab.check``: it needs more clean images than there are, for one.
    """
    own = copy.copy(lab)
    own.cell = replace(lab.cell, defense=_text(defense))
    own.check()
    method = own.defense
    engine = own.engine()
    net: nn.Module = method.finish(method.fit(own.poisoned.observed(), engine), engine)
    return net


def evaluate(net: nn.Module, lab: Lab) -> dict[str, float]:
    """Clean accuracy "ca", attack success rate "asr" and accuracy on triggered images by their true
    class "arr", in percent.
    """
    hits = lab.engine().measure(net, lab.test, lab.triggered)
    return {name: 100 * int(hits[name].sum()) / len(hits[name]) for name in COUNTED}


def run(
    suite: str | Suite,
    *,
    only: str = "",
    seeds: Sequence[int] = (),
    epochs: int | None = None,
    scale: float | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    out: str | Path = "runs",
    jobs: int | None = 1,
) -> pd.DataFrame:
    """Run what has no record yet of a benchmark, by its name or as an object, and give all its
    numbers: ``results`` of its folder.

    Args:
        only: words that must be in a cell's path, with | between alternatives.
        model, weights: another network, and a file that it starts from.
        jobs: trainings at a time, each in a process; None for as many as fit.

    Raises:
        InputError: what cannot work, or a cell that failed, with the reason.
    """
    from . import runner

    grid = load(suite) if isinstance(suite, str) else suite
    file = Path(weights) if weights else None
    grid = grid.changed(
        epochs=epochs,
        seeds=tuple(seeds),
        scale=scale,
        model=named_with(file, model, grid.protocol.model),
    )
    options = Options(
        out=Path(out),
        data=Path(data) if data else None,
        weights=file,
        device=device,
        plugins=registry.added(),
    )
    plan = runner.plan(grid, grid.cells(only), options)
    for outcome in runner.run(plan, jobs=jobs):
        if outcome.record is None:
            raise InputError(f"{outcome.cell}: {outcome.error}")
    return results(plan.folder)


def results(folder: str | Path, metrics: Sequence[str] = COUNTED) -> pd.DataFrame:
    """The records of a folder of results, a row each: what was run, each metric in percent with its
    95 % interval, clean images, seconds, device, commit.

    Raises:
        InputError: no results there, or a record that is damaged.
    """
    grid = load(str(folder))
    return frame(kept.of_grid(grid, Path(folder)), [get(name) for name in metrics])


def load_model(file: str | Path) -> nn.Module:
    """A network that ``bbx run --save-models`` kept beside its record, in eval mode.

    Raises:
        InputError: damaged, or a network that its defense alone can build, such as MCCI's pair.
    """
    found = unpack(content(Path(file)))
    if found is None:
        raise InputError(f"{file}: its defense alone can build this network")
    return found[0]

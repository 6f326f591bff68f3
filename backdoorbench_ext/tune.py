"""Choosing a defense's options by cross-validation on the poisoned training set, as a defender can:
no clean image, no test image.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import msgspec
import torch
from rich.console import Console
from torch import Tensor
from typing_extensions import TypedDict

from . import registry
from .engine import Engine, Progress, seed_of
from .errors import InputError
from .files import locked, remove, write_text
from .lab import Lab
from .options import Options
from .progress import bars, say
from .reading import parsed
from .sharing import dropped
from .suite import Cell, digest


def choices(
    defense: str, grid: Mapping[str, Sequence[Any]], trials: int | None = None, seed: int = 0
) -> list[str]:
    """Every combination of the values in ``grid``, as names: ``cbd`` and {"t1": [3, 5]} ->
    ["cbd[t1=3]", "cbd[t1=5]"].

    Args:
        trials: the budget: so many of them, by chance, where there are more (random search,
            Bergstra and Bengio 2012, https://www.jmlr.org/papers/v13/bergstra12a.html). A
            comparison is fair where all defenses have the same.

    Raises:
        InputError: an unknown option, a value out of range, or nothing to choose from.
    """
    name, fixed = registry.parse(defense)
    grid = dict(grid) or dict(getattr(registry.get_class("defenses", name), "TUNED", {}))
    if not grid:
        raise InputError(f"{name} names no options to tune: give some, e.g. --grid lr=0.01,0.1")
    made = []
    for values in product(*grid.values()):
        options = fixed | dict(zip(grid, values, strict=True))
        made.append(registry.join(name, options))
        registry.create("defenses", made[-1])
    if trials is None or trials >= len(made):
        return made
    rng = torch.Generator().manual_seed(seed_of(seed, "trials"))
    drawn = torch.randperm(len(made), generator=rng)[:trials]
    return [made[i] for i in sorted(drawn.tolist())]


def cross_validate(
    cell: Cell,
    names: Sequence[str],
    folds: int,
    options: Options,
    console: Console | None = None,
) -> dict[str, list[float]]:
    """For each name the accuracy, in [0, 1], on each held-out fold of the poisoned training set, by
    the labels given there.

    Finished folds are kept in ``<out>/tune/``, with the state of the one at hand: a killed run goes
    on where it was.

    Raises:
        InputError: fewer than 2 folds, or more than images; or as ``Lab.check``.
    """
    console = console or Console(stderr=True)
    results: dict[str, list[float]] = {}
    spent: list[float] = []
    with bars(console, "folds") as told:
        lab = Lab(cell, options, partial(told, cell.attack))
        lab.check()
        n = len(lab.poisoned)
        if not 2 <= folds <= n:
            raise InputError(f"folds must lie in [2, {n}], not {folds}")
        rng = torch.Generator().manual_seed(seed_of(cell.seed, "folds"))
        fold = (torch.randperm(n, generator=rng) % folds).to(lab.device)
        for name in names:
            spec = replace(cell, defense=name).spec
            key = digest(spec | {"folds": folds})
            file = options.out / "tune" / f"{registry.parse(name)[0]}-{key}.json"
            with locked(file.with_name(f".{file.name}")):
                done, seconds = _kept(file, folds)
                for k in range(len(done), folds):
                    begun = time.perf_counter()
                    told("folds", "", folds * len(results) + k, folds * len(names))
                    this = f"{name}, fold {k + 1} of {folds}"
                    state = file.with_suffix(f".fold{k}")
                    done.append(_accuracy(lab, name, fold == k, k, state, partial(told, this)))
                    seconds.append(time.perf_counter() - begun)
                    kept = {"spec": spec, "folds": folds, "accuracy": done, "seconds": seconds}
                    write_text(file, json.dumps(kept, indent=1, sort_keys=True) + "\n")
                    remove(state)
                    say(console, f"{this}: {100 * done[-1]:.2f}")
            results[name] = done
            spent.append(sum(seconds))
        told("folds", "", folds * len(names), folds * len(names))
    chosen = Tuned(
        defense=best(results),
        dataset=cell.dataset,
        attack=cell.attack,
        rate=cell.rate,
        seed=cell.seed,
        trials=len(names),
        folds=folds,
        seconds=round(sum(spent), 1),
    )
    text = json.dumps(chosen, indent=1, sort_keys=True)
    write_text(_place(options.out, replace(cell, defense=chosen["defense"])), text + "\n")
    return results


class Tuned(TypedDict):
    """How the options of a defense were chosen, and what that took."""

    defense: str
    dataset: str
    attack: str
    rate: float
    seed: int
    trials: int
    folds: int
    seconds: float


def _place(out: Path, cell: Cell) -> Path:
    """What was chosen holds for a defense on a data set under a protocol, whatever the attack."""
    spec = cell.spec
    key = digest({name: spec[name] for name in ("dataset", "defense", "protocol")})
    return out / "tune" / "chosen" / f"{registry.parse(cell.defense)[0]}-{key}.json"


def tuned(out: Path, cell: Cell) -> Tuned | None:
    """How a cell's defense was tuned, if it was, below the same ``out``; a damaged file is taken
    away, which is said.
    """
    file = _place(out, cell)
    if not file.exists():
        return None
    try:
        found: Tuned = parsed(file, Tuned)
    except InputError as error:
        dropped(file, error)
        return None
    return found


class Kept(TypedDict):
    """What is kept of the folds of a defense."""

    accuracy: list[Annotated[float, msgspec.Meta(ge=0, le=1)]]
    seconds: list[Annotated[float, msgspec.Meta(ge=0)]]


def _kept(file: Path, folds: int) -> tuple[list[float], list[float]]:
    """The accuracies of the folds that are done, and their seconds; none where the file is
    damaged.
    """
    if not file.exists():
        return [], []
    try:
        kept = parsed(file, Kept)
        if len(kept["accuracy"]) == len(kept["seconds"]) <= folds:
            return kept["accuracy"], kept["seconds"]
        raise InputError(f"{file}: more than {folds} folds")
    except InputError as error:
        dropped(file, error)
        return [], []


def _accuracy(lab: Lab, name: str, held: Tensor, k: int, state: Path, progress: Progress) -> float:
    """Train on all but the ``held`` images, and say how many of these get their given label."""
    train = lab.poisoned.observed()
    engine = Engine(
        lab.rules,
        train[~held],
        lab.reserve,
        seed=seed_of(lab.cell.seed, "tuning", k),
        device=lab.device,
        state=state,
        progress=progress,
    )
    defense = registry.create("defenses", name)
    net = defense.finish(defense.fit(train[~held], engine), engine)
    own = train[held]
    return float((engine.predict(net, own).argmax(1) == own.y).float().mean())


def best(results: Mapping[str, Sequence[float]]) -> str:
    """The name with the highest mean accuracy; the first of equals."""
    return max(results, key=lambda name: mean(results[name]))

"""What commands have in common: the two consoles, and the grid that a name means."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from .. import metrics, progress, registry, suite
from ..errors import InputError
from ..protocols import named
from ..suite import Suite
from . import spelling

app = typer.Typer(
    help="``bbx``: list, show, run, status, table, compare, rank, plot, report, poison, defend, "
    "tune, check, export, doctor and more. Exit codes: 0 all done, 1 some cell failed, 2 bad "
    "input.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
command = partial(spelling.command, app)
out = Console()
err = Console(stderr=True)


def say(text: str, console: Console = err) -> None:
    progress.say(console, text)


def numbers(text: str, kind: type[Any], what: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{what} must be numbers with commas between them, not {text!r}") from None


def own_grid(dataset: str, attacks: str, defenses: str, protocol: str, called: str = "") -> Suite:
    rules = named(protocol)
    if not attacks or not defenses:
        raise InputError(
            "a grid of your own needs --attacks and --defenses, e.g. --attacks badnets,blend "
            "--defenses none,cbd"
        )
    axes = [tuple(registry.split(text)) for text in (dataset, attacks, defenses)]
    if called in registry.modules("benchmarks"):
        raise InputError(f"--name {called}: there is a benchmark of that name; give another")
    name = "own" if protocol == "cbd" else f"own-{protocol}"
    return Suite(called or name, rules, axes[0], axes[1], axes[2])


def grid_of(name: str, to: Path, scale: float | None = None) -> tuple[Suite, Path]:
    """A suite, at a scale, and the folder of its results, which may be what was named."""
    if suite.is_results(str(to / name)) and name not in registry.modules("benchmarks"):
        # a grid of one's own, by the name that it was run under
        name = str(to / name)
    grid = suite.load(name).changed(scale=scale)
    folder = Path(name) if suite.is_results(name) else to / grid.name
    return grid.joined(folder), folder


def chosen(text: str) -> list[metrics.Metric]:
    return [metrics.get(key.strip()) for key in text.split(",")]


def starting(file: Path | None, model: str | None, grid: Suite) -> str | None:
    """The network of ``--model`` and ``--weights``; what it takes of the file is said."""
    if file is None:
        return model
    from .. import models, weights

    named = weights.named(file, model, grid.protocol.model)
    network = named or grid.protocol.model
    models.check(network)
    say(f"{network.partition('@')[0]} starts from {file}: {models.check_start(network)}")
    return named

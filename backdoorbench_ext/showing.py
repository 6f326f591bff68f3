"""What ``bbx show`` prints of a method, a benchmark or a protocol."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from . import catalogue, registry, suite
from . import cost as costs
from .devices import pick_device
from .errors import nearest
from .protocols import PROTOCOLS, Protocol
from .suite import Suite
from .surroundings import surroundings
from .toolbox import attacks, checkout, defenses

METHODS = ("attacks", "defenses", "executors", "benchmarks")


def show(out: Console, name: str) -> None:
    """Everything that goes by a name.

    Raises:
        InputError: nothing does.
    """
    kinds = [kind for kind in METHODS if name in registry.modules(kind)]
    kinds_of_theirs = {"attack": checkout.attacks(), "defense": checkout.defenses()}
    theirs = [kind for kind, names in kinds_of_theirs.items() if name in names]
    for kind in theirs:
        _theirs(out, name, kind, kinds_of_theirs[kind][name])
    if theirs:
        return
    if not kinds and name not in PROTOCOLS:
        known = [n for kind in (*METHODS, "protocols") for n in catalogue.names(kind)]
        raise nearest(name, known, "methods, benchmarks and protocols")
    for kind in kinds:
        mod = registry.module(kind, name)
        out.print(f"[bold]{name}[/bold]  ({kind[:-1]}, {mod.__file__})\n", highlight=False)
        out.print(flowing(mod), highlight=False, markup=False)
        if kind == "benchmarks":
            _suite(out, suite.load(name))
        else:
            _method(out, registry.get_class(kind, name))
        out.print()
    if name in PROTOCOLS:
        out.print(str(PROTOCOLS[name]), highlight=False, markup=False)


def _theirs(out: Console, name: str, kind: str, line: str) -> None:
    """A method of BackdoorBench: how it is run, and the flags of a defense with what its YAML file
    has for them.
    """
    module = attacks if kind == "attack" else defenses
    out.print(f"[bold]{name}[/bold]  ({kind}: {escape(line)})\n", highlight=False)
    out.print(flowing(module), highlight=False, markup=False)
    if kind == "defense":
        method = name.partition(":")[2]
        why = checkout.refused(method)
        if why:
            out.print(f"\ncannot run here: {why}", highlight=False, markup=False)
        table = Table("flag", "its default for CIFAR-10", title="its flags")
        for flag, value in defenses.defaults(method).items():
            table.add_row(flag, escape("" if value is None else str(value)))
        out.print(table)
    out.print()


def flowing(described: Any) -> str:
    """A docstring whose paragraphs are lines, for the console to break where it is wide."""
    paragraphs = (inspect.getdoc(described) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


def _method(out: Console, cls: type[Any]) -> None:
    out.print(f"\n{flowing(cls)}\n", highlight=False, markup=False)
    table = Table("option", "meaning", box=None)
    for f in fields(cls):
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        allowed = ", ".join(filter(None, (kind, _range(f.metadata))))
        meaning = f"{f.metadata.get('meaning', '')} ({allowed})"
        table.add_row(f"{f.name}={_default(f.default)}", escape(meaning))
    out.print(table)
    if hasattr(cls, "clean_images"):
        short = registry.called(cls)
        out.print(f"\nclean images needed by default: {_needed(cls())}", highlight=False)
        out.print(
            f"cost in epochs of plain training, measured here: bbx show {short} --cost",
            highlight=False,
        )


def _default(value: Any) -> str:
    if value is MISSING:
        return "?"
    return "not set" if value is None else str(value)


def _range(rule: Any) -> str:
    """The values that an option may have."""
    choices = rule.get("choices", ())
    low = rule.get("low")
    high = rule.get("high")
    if choices:
        return "one of " + ", ".join(choices)
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is not None:
        return f"at least {low}"
    return "" if high is None else f"at most {high}"


def _needed(method: Any) -> str:
    if method.clean_per_class:
        return f"{method.clean_per_class} of each class"
    return "the whole reserve" if method.clean_images is None else f"{method.clean_images}"


def _suite(out: Console, grid: Suite) -> None:
    table = Table(box=None, show_header=False)
    axes = {
        "data sets": grid.datasets,
        "attacks": grid.attacks,
        "defenses": grid.defenses,
        "rates": grid.rates,
        "seeds": grid.seeds,
    }
    for label, values in axes.items():
        table.add_row(label, escape(", ".join(map(str, values))))
    table.add_row("cells", str(len(grid.cells())))
    for dataset in grid.datasets:
        table.add_row("protocol", escape(str(grid.protocol.on(dataset))))
    out.print()
    out.print(table)


def cost(out: Console, name: str, protocol: Protocol, device: str) -> None:
    """What each stage of a defense costs, timed here."""
    rules = protocol.on("cifar10")
    place = pick_device(device)
    stages = costs.cost(registry.create("defenses", name), rules, device=place)
    table = Table("stage", Column("epochs of plain training", justify="right"), box=None)
    for stage, epochs in stages.items():
        shared = " (shared by all that need it)" if stage == "victim" else ""
        table.add_row(escape(stage) + shared, f"{epochs:.1f}")
    table.add_row("all", f"{sum(stages.values()):.1f}")
    out.print(
        f"{name}, 50,000 images of 32x32, {rules.model}, batch {rules.recipe.batch_size}; "
        f"on {surroundings(place)['device']}",
        highlight=False,
        markup=False,
    )
    out.print(table)

"""How the command line spells: what a value is, as manuals write it, and options by either name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

# that of Python 3.10 takes a default of None for a part of the annotation
from typing_extensions import get_type_hints

Function = TypeVar("Function", bound=Callable[..., None])
# what help calls a value of a type
VALUES: dict[Any, str] = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
# of two words that mean the same, the one that a command has is taken
SAME = {"to": "out", "out": "to"}


def command(
    app: typer.Typer, *examples: str, name: str | None = None
) -> Callable[[Function], Function]:
    """As ``app.command``; its help names values and ends in ``examples``, and ``--attack`` means
    ``--attacks`` where that is what it has.
    """
    # lines after a backspace are left as they are
    epilog = "\n".join(("Examples:\n\n\b", *(f"  {line}" for line in examples)))

    def register(function: Function) -> Function:
        known = set()
        # what stands in the annotations is evaluated once, and changed before typer reads it
        hints = get_type_hints(function, include_extras=True)
        function.__annotations__ = hints
        for parameter, hint in hints.items():
            for given in getattr(hint, "__metadata__", ()):
                if isinstance(given, OptionInfo):
                    # the first of an annotation's words is taken for a default
                    words = (given.default, *(given.param_decls or ()))
                    names = [text.lstrip("-") for text in words if isinstance(text, str)]
                    known |= set(names or [parameter.replace("_", "-")])
                    given.metavar = given.metavar or _value(get_args(hint)[0])
                elif isinstance(given, ArgumentInfo):
                    given.metavar = given.metavar or parameter.upper()
        settings = {"token_normalize_func": partial(spelled, known)}
        return app.command(name, context_settings=settings, epilog=epilog)(function)

    return register


def _value(hint: Any) -> str | None:
    """What a value of an annotation is called; None of a flag."""
    if get_origin(hint) in (UnionType, list):
        return _value(get_args(hint)[0])
    return VALUES.get(hint)


def spelled(known: Collection[str], name: str) -> str:
    """The option of a command that a name means: ``attack`` where it has ``attacks``, and so on."""
    others = (name, f"{name}s", name.removesuffix("s"), SAME.get(name, name))
    return next((other for other in others if other in known), name)

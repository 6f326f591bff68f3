"""What methods are called in tables and pictures: their titles, and letters for their options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from string import ascii_letters

from . import registry
from .errors import InputError


@cache
def plain(kind: str, name: str) -> str:
    """A method's title without options: what its class says, else its name in the usual case; of
    BackdoorBench's own script its name there.
    """
    scheme, _, script = name.partition(":")
    if scheme == "backdoorbench":
        return f"{script} (BackdoorBench)"
    try:
        told: str = registry.get_class(kind, name).title
    except InputError:
        # a method of a plugin that is not at hand
        told = ""
    return told or (name.upper() if kind == "defenses" else name.capitalize())


def title(text: str, kind: str = "defenses") -> str:
    """A method with its options: ``mcci[inference=avg]`` -> ``MCCI [inference=avg]``."""
    name, bracket, options = text.partition("[")
    return plain(kind, name) + (f" {bracket}{options}" if bracket else "")


def _lettered(names: Mapping[str, str], used: int = 0) -> dict[str, str]:
    """Names and what to call them: those with options get a letter, ``used`` being taken."""
    letters = iter(ascii_letters[used:])
    return {
        text: name + (f" ({next(letters)})" if "[" in text else "") for text, name in names.items()
    }


def heads(defenses: Sequence[str]) -> dict[str, str]:
    """Short titles of defenses: those with options get a letter, which the caption explains."""
    return _lettered({d: plain("defenses", d.partition("[")[0]) for d in defenses})


def labels(attacks: Sequence[str], defenses: Sequence[str]) -> dict[str, str]:
    """The same for attacks; their letters come after those of the defenses."""
    named = {a: plain("attacks", a.partition("[")[0]) for a in attacks}
    return _lettered(named, sum("[" in d for d in defenses))


def letters(*names: Mapping[str, str]) -> list[str]:
    """What the letters of ``heads`` and ``labels`` mean: ``(a) inference=avg``."""
    lettered = [(text, name) for some in names for text, name in some.items() if "[" in text]
    return [
        f"{name.rpartition(' ')[2]} {', '.join(registry.split(text.partition('[')[2][:-1]))}"
        for text, name in lettered
    ]


def rate(share: float) -> str:
    """A poisoning rate as it is printed."""
    return f"{100 * share:g} %"

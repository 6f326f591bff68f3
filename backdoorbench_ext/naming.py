"""What methods are called in tables and pictures: by their titles, and where a method stands there
several times by the options in which it differs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations

from . import registry
from .errors import InputError

# a method's options as text: how they are written, by their names
Options = dict[str, str]


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
    """A method with all its options: ``mcci[inference=avg]`` -> ``MCCI [inference=avg]``."""
    name, bracket, options = text.partition("[")
    return plain(kind, name) + (f" {bracket}{options}" if bracket else "")


def heads(defenses: Sequence[str]) -> dict[str, str]:
    """Titles of defenses that stand together: ``MCCI, 10 images`` beside ``MCCI, 1 image``."""
    return _named(defenses, "defenses")


def labels(attacks: Sequence[str]) -> dict[str, str]:
    """The same for attacks."""
    return _named(attacks, "attacks")


def _named(texts: Sequence[str], kind: str) -> dict[str, str]:
    families: dict[str, dict[str, Options]] = {}
    for text in texts:
        families.setdefault(text.partition("[")[0], {})[text] = _options(text)
    found: dict[str, str] = {}
    for name, variants in families.items():
        for text, own in variants.items():
            others = [options for other, options in variants.items() if other != text]
            told = map(_words, *_telling(own, others)) if others else ()
            found[text] = ", ".join([plain(kind, name), *told])
    count = Counter(found.values())
    return {text: found[text] if count[found[text]] == 1 else title(text, kind) for text in texts}


def _options(text: str) -> Options:
    pairs = (part.partition("=") for part in registry.split(text.partition("[")[2][:-1]))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _telling(own: Options, others: Sequence[Options]) -> tuple[list[str], list[str]]:
    """Names and values of as few options as none of the others has, the first of those; where all
    are another's too, those that not all have.
    """
    held = [set(options.items()) for options in others]
    for size in range(1, len(own) + 1):
        for some in combinations(own.items(), size):
            if not any(options.issuperset(some) for options in held):
                return [key for key, _ in some], [value for _, value in some]
    some = tuple(pair for pair in own.items() if not all(pair in options for options in held))
    return [key for key, _ in some], [value for _, value in some]


def _words(name: str, value: str) -> str:
    """An option as one says it: ``10 images``, ``average``, ``T1 = 350``."""
    words = name.replace("_", " ")
    if re.fullmatch(r"[a-z]\d+", name):
        words = name.upper()
    if value.isdecimal() and re.search(r"[^s]s$", words):
        return f"{value} {words[:-1] if value == '1' else words}"
    if not re.match(r"[-+.]?\d|True$|False$|None$|\(", value):
        return value
    return f"{words} = {value}"


def explained(*names: Mapping[str, str]) -> list[str]:
    """All options behind the names of ``heads`` and ``labels``: ``ABL: epochs=6, gamma=0.5``."""
    return [
        f"{name}: {', '.join(registry.split(text.partition('[')[2][:-1]))}"
        for some in names
        for text, name in some.items()
        if "[" in text
    ]


def rate(share: float) -> str:
    """A poisoning rate as it is printed."""
    return f"{100 * share:g} %"

"""What is said to the user of bad input, and how."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line: what, where and why."""


def nearest(name: str, known: Iterable[str], kind: str) -> InputError:
    """The error for an unknown name: the near match and the list."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"no {name!r} among the {kind}.{hint} Known: {', '.join(known)}")

"""What is said to the user of bad input, and how."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# letters of a message; paths and values of strangers may be longer than any screen
LONGEST = 1500


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line: what, where and why."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class NoData(InputError):
    """A data set whose folder was not said."""


def one_line(text: str) -> str:
    """A text as one line that a terminal shows as it is: control characters and bytes that are no
    UTF-8 are written out, what is too long loses its middle.
    """
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 3 :]}"


def reason(error: BaseException) -> str:
    """What an error of a library or of the system says in a line; advice below it is left out."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__


def told(error: BaseException) -> str:
    """An error in a line, with its kind."""
    return f"{type(error).__name__}: {reason(error)}"


def nearest(name: str, known: Iterable[str], kind: str) -> InputError:
    """The error for an unknown name: the near match and the list."""
    known = sorted(known)
    # of names longer than any of ours nothing is near
    lower = {one.lower(): one for one in reversed(known)}
    near = difflib.get_close_matches(name.lower(), lower, n=1) if len(name) < 200 else []
    hint = f" Did you mean {lower[near[0]]!r}?" if near else ""
    shown = name if len(name) < 200 else f"{name[:200]}..."
    return InputError(f"no {shown!r} among the {kind}.{hint} Known: {', '.join(known)}")


@contextmanager
def in_one_line(speaker: str = "error") -> Iterator[None]:
    """Bad input ends a script with one line on stderr and the exit code 2; decorates its main."""
    try:
        yield
    except InputError as error:
        print(f"{speaker}: {error}", file=sys.stderr)
        raise SystemExit(2) from None

"""The command line, ``bbx``: its commands are in the modules here, each with its options."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer

from .. import __version__
from ..errors import InputError, reason
from ..signals import Stopped, heeding

# in the order in which help lists their commands
# isort: off
from . import asking, running, results, handing
from .shared import app, err, out, say

# isort: on

__all__ = ["app", "asking", "err", "handing", "main", "out", "results", "running"]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


class Patient:
    """A stream of progress: a run goes on when nobody can read it any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def _any_terminal() -> Iterator[None]:
    """An arrow that a terminal's encoding lacks is written out; a stream may be closed, or full."""
    errors = sys.stderr
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if errors:
        sys.stderr = cast(TextIO, Patient(errors))
    try:
        yield
    finally:
        sys.stderr = errors


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2, a signal one line and
    128 plus its number.
    """
    with _any_terminal(), heeding():
        try:
            app()
        except InputError as error:
            _end(2, str(error))
        except Stopped as stopped:
            name = signal.Signals(stopped.args[0]).name
            _end(128 + stopped.args[0], f"stopped by {name}; the same command goes on from here")
        except BrokenPipeError:
            # nobody reads on, which Python would complain of once more at its end
            sys.stdout = io.StringIO()
            sys.exit(1)
        except MemoryError:
            _end(1, "out of memory")
        except OSError as error:
            _end(1, reason(error))


def _end(code: int, why: str) -> NoReturn:
    say(f"bbx: {why}")
    sys.exit(code)

"""Signals that end what runs in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Ctrl-C; a scheduler or ``docker stop``; a terminal that has gone
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# the signals that came while they were heeded
_came: list[int] = []


class Stopped(BaseException):
    """Somebody, or a scheduler, wants what runs to end; its argument is the signal's number."""


def check() -> None:
    """Raise ``Stopped`` anew where one got lost: a compiled module that is being imported makes an
    ``ImportError`` of it.
    """
    if _came:
        raise Stopped(_came[-1])


@contextmanager
def heeding(numbers: Sequence[int] = ENDING) -> Iterator[None]:
    """These signals raise ``Stopped`` inside; once is enough."""

    def stop(number: int, _: Any) -> None:
        for other in numbers:
            # an impatient second one must not end the ending
            signal.signal(other, signal.SIG_IGN)
        _came.append(number)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        # nohup has it ignored
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        _came.clear()
        for number, handler in before.items():
            signal.signal(number, handler)

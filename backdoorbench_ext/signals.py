"""Signals that end what runs in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Ctrl-C; a scheduler or ``docker stop``; a terminal that has gone
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody, or a scheduler, wants what runs to end; its argument is the signal's number."""


@contextmanager
def heeding(numbers: Sequence[int] = ENDING) -> Iterator[None]:
    """These signals raise ``Stopped`` inside; once is enough."""

    def stop(number: int, _: Any) -> None:
        for other in numbers:
            # an impatient second one must not end the ending
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        # nohup has it ignored
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""How far long work is: a bar for everything that reports, or, where there is no terminal to draw
on, a line once a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from .errors import one_line

# seconds
LINE_EVERY = 60.0
# columns of a bar
WIDTH = 16


def say(console: Console, text: str) -> None:
    """A line, however long, with nothing in it that a terminal would obey."""
    console.print(one_line(text), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bars(console: Console, whole: str = "") -> Iterator[Callable[[str, str, int, int], None]]:
    """What is called with (whose, what, done, in all); a full bar goes, all but that of the
    ``whole``, which has no lines either.
    """
    with Progress(
        # names are long: what they lose is their end, never the numbers beside them
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(bar_width=WIDTH),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        expand=True,
        console=console,
        disable=not console.is_terminal,
    ) as drawn:
        known: dict[str, TaskID] = {}
        said = time.monotonic()

        def report(whose: str, what: str, done: int, total: int) -> None:
            nonlocal said
            name = one_line(": ".join(filter(None, (whose, what))))
            if name not in known:
                # the stage first, which a narrow terminal then shows
                shown = one_line(": ".join(filter(None, (what, whose))))
                known[name] = drawn.add_task(escape(shown), total=total)
            drawn.update(
                known[name], completed=done, total=total, visible=done < total or name == whole
            )
            if name != whole and not console.is_terminal and time.monotonic() - said >= LINE_EVERY:
                said = time.monotonic()
                say(console, f"{name} {done}/{total}")

        yield report

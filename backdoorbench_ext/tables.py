"""Tables, pure functions of records: long CSV with every number, LaTeX and Markdown as a paper
prints them, and ours beside the published numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from . import latex
from .errors import InputError
from .files import write_text
from .frame import Key, frame, key, summary
from .latex import escape
from .layout import Layout, Line, Style, caption, headline, layout, notes, present
from .naming import heads, labels, rate
from .records import Record
from .suite import Suite

FORMATS = {"latex": "tex", "markdown": "md", "csv": "csv"}
USUAL_STYLE = Style()
USUAL = USUAL_STYLE.metrics
# rows of a comparison on a page
LONG = 40
# points; what one seed, another order of the data and another library may do
TOLERANCE = 5.0


def _titles(table: Layout) -> list[str]:
    """What stands over the columns before the numbers."""
    return [table.rows] if table.given else [table.rows, "Clean images"]


def _start(table: Layout, line: Line) -> list[str]:
    return [line.label] if table.given else [line.label, line.given]


def _extents(table: Layout) -> tuple[float, float]:
    """The extents of the longest texts: of the columns before the groups together, and of the
    widest group.
    """
    lines = [line for line in table.lines if line.cells]
    start = [_titles(table), *(_start(table, line) for line in lines)]
    before = sum(max(map(latex.extent, column)) for column in zip(*start, strict=True))
    heads = [latex.extent(f"{metric.title} {metric.arrow}") for metric in table.metrics]
    cells = [cell for line in lines for cell in line.cells]
    numbers = sum(
        max(head, *(latex.extent(cell[i][0]) for cell in cells)) for i, head in enumerate(heads)
    )
    return before, max(numbers, *map(latex.extent, table.groups))


def _shape(table: Layout, groups: int) -> list[str]:
    """So many groups of columns, in LaTeX."""
    before = "l" + "r" * (len(_titles(table)) - 1)
    return [before, *["r" * len(table.metrics)] * groups]


def in_latex(records: Sequence[Record], suite: Suite, style: Style) -> str:
    """A table for a paper of one or two columns; what is too wide for a page is split into panels
    below each other.

    All numbers stand to the right, so that their points are in line without siunitx, whose columns
    know no underlining.
    """
    table = layout(records, suite, style)
    before, each = _extents(table)
    panels = latex.parts(
        range(len(table.groups)), lambda n: latex.width(before + n * each, _shape(table, n))
    )
    body: list[str] = []
    for panel in panels:
        # a rule as thick as those at the ends
        body += [r"\midrule[\heavyrulewidth]"] if body else []
        body += _panel(table.part(panel[0], panel[-1] + 1))
    across = len(panels[0])
    short = style.caption == "short"
    head = headline(records, suite)
    below = notes(records, suite, style, marked=table.marked)
    return latex.table(
        _shape(table, across),
        before + across * each,
        body,
        suite.name,
        head if short else f"{head} {below}",
        notes=below if short else "",
        shaded=bool(style.highlight),
    )


def _panel(table: Layout) -> list[str]:
    """The rows of a panel, its head first."""
    width = len(table.metrics)
    before = len(_titles(table))
    names = [
        latex.over(_shaded(escape(name), shaded), width)
        for name, shaded in zip(table.groups, table.shaded, strict=True)
    ]
    ends = [before + width * (i + 1) for i in range(len(table.groups))]
    arrows = [escape(f"{m.title} {m.arrow}") for m in table.metrics]
    rows = [
        latex.row([*[""] * before, *names]),
        " ".join(rf"\cmidrule(lr){{{end - width + 1}-{end}}}" for end in ends),
        latex.row([*_titles(table), *arrows * len(table.groups)]),
        r"\midrule",
    ]
    rows += [_latex_row(table, line, before + width * len(table.groups)) for line in table.lines]
    if table.given:
        counts = [latex.over(images, width) for images in table.given]
        rows.append(r"\midrule " + latex.row(["Clean images", *counts]))
    return rows


def _latex_row(table: Layout, line: Line, columns: int) -> str:
    if not line.cells:
        return rf"\addlinespace \multicolumn{{{columns}}}{{l}}{{{escape(line.label)}}} \\"
    dress = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    cells = [
        _shaded(dress[mark] % escape(text), shaded or line.shaded)
        for cell, shaded in zip(line.cells, table.shaded, strict=True)
        for text, mark in cell
    ]
    start = [_shaded(escape(text), line.shaded) for text in _start(table, line)]
    rule = r"\midrule " if line.rule else ""
    return rule + latex.row([*start, *cells])


def _shaded(cell: str, shaded: bool) -> str:
    return rf"\cellcolor{{black!8}}{cell}" if shaded else cell


def markdown(records: Sequence[Record], suite: Suite, style: Style) -> str:
    """The same table for a README or an issue."""
    table = layout(records, suite, style)
    head = _titles(table)
    head += [f"{_plain(name)} {m.title} {m.arrow}" for name in table.groups for m in table.metrics]
    rows = [[*map(_plain, _start(table, line)), *_numbers(line)] for line in table.lines]
    if table.given:
        gaps = [""] * (len(table.metrics) - 1)
        rows.append(["Clean images", *(text for n in table.given for text in (n, *gaps))])
    left = [True] + [False] * (len(head) - 1)
    note = _plain(caption(records, suite, style, table.marked))
    return f"{markdown_table(head, rows, left)}\n\n{note}\n"


def _numbers(line: Line) -> list[str]:
    dress = {"best": "**%s**", "second": "<u>%s</u>", "": "%s"}
    return [dress[mark] % text for cell in line.cells for text, mark in cell]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    """A Markdown table, whose columns stand to the ``left`` or to the right."""
    rule = ["---" if words else "---:" for words in left]
    full = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *full])


def _plain(text: str) -> str:
    """Text -> Markdown that is neither HTML nor another cell."""
    return text.replace("<", "&lt;").replace("|", "\\|")


def against(records: Sequence[Record], suite: Suite) -> list[dict[str, Any]]:
    """One row a cell that a paper reports: mean over seeds, published number and difference of each
    counted metric, and which differ by more than ``TOLERANCE``, unless the suite is a part of one.
    """
    seconds: dict[Key, list[float]] = {}
    for record in records:
        seconds.setdefault(key(record), []).append(record["time"]["training"])
    rows = []
    for cell, numbers in summary(records, USUAL).items():
        dataset, share, attack, defense = cell
        published = suite.reported.get((dataset, attack, defense, share))
        if not published:
            continue
        row: dict[str, Any] = {"dataset": dataset, "attack": attack}
        row |= {"rate": share, "defense": defense}
        far = []
        for metric in USUAL:
            ours = numbers[metric.key].mean
            theirs = published.get(metric.key, float("nan"))
            row[metric.key] = ours
            row[f"{metric.key} reported"] = theirs
            row[f"{metric.key} difference"] = ours - theirs
            if abs(ours - theirs) > TOLERANCE and not suite.scale:
                far.append(metric.title)
        if "seconds" in published:
            row["seconds"] = sum(seconds[cell]) / len(seconds[cell])
            row["seconds reported"] = published["seconds"]
        rows.append(row | {"not reproduced": " ".join(far)})
    return rows


def comparison(records: Sequence[Record], suite: Suite, form: str) -> str:
    """``against`` as a table, a line a cell.

    Raises:
        InputError: nothing was published of these cells.
    """
    rows = against(records, suite)
    if not rows:
        raise InputError(f"{suite.name} has no published numbers of the cells that have records")
    if form == "csv":
        import pandas as pd

        return str(pd.DataFrame(rows).to_csv(index=False, float_format="%.2f"))
    columns = [c for c in _columns(rows) if c != "not reproduced" or not suite.scale]
    attacks, defenses = present(records, suite)
    named = {"defense": heads(defenses), "attack": labels(attacks)}
    if form == "latex":
        # differences can be seen, and cost the room of a page
        columns = [c for c in columns if "difference" not in c and c != "not reproduced"]
        lines = [_marked_far(columns, row, named) for row in rows]
        bold = "" if suite.scale else f"Bold: more than {TOLERANCE:g} points away. "
        told = notes(records, suite, USUAL_STYLE, marked=False)
        return _pages(suite, columns, lines, headline(records, suite), f"{bold}{told}")
    lines = [[_text(c, row.get(c), named) for c in columns] for row in rows]
    titles = [_title(c) for c in columns]
    about = caption(records, suite, USUAL_STYLE, marked=False)
    judged = f"Not reproduced: more than {TOLERANCE:g} points away"
    if suite.scale:
        judged = f"Not comparable: a scale of {suite.scale}"
    note = f"Each metric: ours, reported, difference. {judged}. {about}"
    return markdown_table(titles, lines, [c in WORDS for c in columns]) + f"\n\n{note}\n"


# the columns of a comparison that hold words
WORDS = ("dataset", "attack", "defense", "not reproduced")


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns that say something: some are published, and what all cells share is in the
    caption.
    """
    unknown = [m.key for m in USUAL if all(math.isnan(row[f"{m.key} reported"]) for row in rows)]
    same = [c for c in ("dataset", "rate") if len({row[c] for row in rows}) == 1]
    names = dict.fromkeys(c for row in rows for c in row)
    # seconds, which some cells have, stand before the last column
    ordered = [c for c in names if c != "not reproduced"] + ["not reproduced"]
    return [c for c in ordered if c.partition(" ")[0] not in unknown and c not in same]


def _title(column: str) -> str:
    known = {metric.key: metric.title for metric in USUAL}
    words = column.replace("difference", "diff.").split()
    return " ".join(known.get(word, word) for word in words)


def _text(column: str, value: object, named: dict[str, dict[str, str]]) -> str:
    """A value as it is printed."""
    if not isinstance(value, float):
        return named.get(column, {}).get(str(value), "--" if value is None else str(value))
    if math.isnan(value):
        return "--"
    if column == "rate":
        return rate(value)
    return f"{value:+.2f}" if "difference" in column else f"{value:.2f}"


def _marked_far(
    columns: Sequence[str], row: dict[str, Any], named: dict[str, dict[str, str]]
) -> list[str]:
    """A row in LaTeX, in which numbers of ours are bold that are far from the published ones."""
    far = row["not reproduced"].split()
    texts = {c: escape(_text(c, row.get(c), named)) for c in columns}
    return [rf"\textbf{{{text}}}" if _title(c) in far else text for c, text in texts.items()]


def _pages(
    suite: Suite,
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    head: str,
    note: str,
) -> str:
    """A comparison in LaTeX, in tables of at most ``LONG`` rows unless one attack has more."""
    names = columns.index("defense")
    pages: list[list[str]] = [[]]
    # what stands before the defense is printed once
    for _, group in groupby(lines, key=lambda row: row[:names]):
        first, *more = group
        rows = [list(first), *([""] * names + list(row[names:]) for row in more)]
        if len(pages[-1]) + len(rows) > LONG and pages[-1]:
            pages.append([])
        gap = r"\addlinespace " if pages[-1] else ""
        texts = list(map(latex.row, rows))
        pages[-1] += [gap + texts[0], *texts[1:]]
    words = [column for column in columns if column in WORDS or column == "rate"]
    measured = [column for column in columns if column not in words][::2]
    groups = ["l" * len(words), *["rr"] * len(measured)]
    heads = [*words, *["ours", "reported"] * len(measured)]
    starts = [len(words) + 2 * i + 1 for i in range(len(measured))]
    top = [
        latex.row([*[""] * len(words), *(latex.over(_title(c), 2) for c in measured)]),
        " ".join(rf"\cmidrule(lr){{{start}-{start + 1}}}" for start in starts),
        latex.row(heads),
        r"\midrule",
    ]
    extent = sum(
        max(latex.extent(text.replace(r"\textbf{", "")) for text in own)
        for own in zip(heads, *lines, strict=True)
    )
    label = f"{suite.name}-reported"
    pieces = [latex.table(groups, extent, [*top, *pages[0]], label, head, note)]
    for number, page in enumerate(pages[1:], 2):
        told = f"{suite.name}, continued."
        pieces.append(latex.table(groups, extent, [*top, *page], f"{label}-{number}", told))
    return "\n".join(pieces)


def render(
    records: Sequence[Record],
    suite: Suite,
    form: str,
    against: bool = False,
    style: Style = USUAL_STYLE,
) -> str:
    """The table as "latex", "markdown" or "csv"; ``against``: beside the published numbers.

    Raises:
        InputError: no records, or another format.
    """
    if form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    if not records:
        raise InputError(f"no records of {suite.name} yet: bbx run {suite.name}")
    if against:
        return comparison(records, suite, form)
    if form == "csv":
        return str(frame(records, style.metrics).to_csv(index=False, float_format="%.4f"))
    draw = in_latex if form == "latex" else markdown
    return draw(records, suite, style)


def write(records: Sequence[Record], suite: Suite, folder: Path) -> list[Path]:
    """Write table.tex, table.md and table.csv into ``folder``, and where there are published
    numbers the comparison as reported.tex, .md and .csv.
    """
    files = []
    compared = [False, True] if against(records, suite) else [False]
    for beside in compared:
        for form, suffix in FORMATS.items():
            file = folder / f"{'reported' if beside else 'table'}.{suffix}"
            write_text(file, render(records, suite, form, against=beside))
            files.append(file)
    return files

"""Tables, pure functions of records: long CSV with every number, LaTeX and Markdown as a paper
prints them, and ours beside the published numbers.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import write_text
from .frame import Key, frame, key, summary
from .layout import Layout, Line, caption, layout, present
from .metrics import COUNTED, Metric, get
from .naming import heads, labels, rate
from .records import Record
from .suite import Suite

FORMATS = {"latex": "tex", "markdown": "md", "csv": "csv"}
USUAL = tuple(get(name) for name in COUNTED)
# more columns than these want both columns of a two-column paper
NARROW = 7
# rows of a comparison on a page
LONG = 40
# points; what one seed, another order of the data and another library may do
TOLERANCE = 5.0


def escape(text: str) -> str:
    """Plain text -> LaTeX."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
    }
    special |= {c: "\\" + c for c in "&%$#_{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}
    plain = "".join(special.get(c) or _letter(c) for c in text)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", plain)


def _letter(letter: str) -> str:
    """A letter that LaTeX has in every font, or its number in Unicode."""
    base = unicodedata.normalize("NFD", letter)[0]
    known = letter in "ßæøœåłÆØŒÅŁ" or (base.isascii() and letter <= "ſ")
    return letter if known else rf"\texttt{{U+{ord(letter):04X}}}"


def dressed(note: str, label: str, groups: Sequence[str], body: Sequence[str]) -> str:
    """The environment around the rows of a table; ``groups`` of columns, "l" or "r" each, stand
    apart.
    """
    kind = "table*" if sum(map(len, groups)) > NARROW else "table"
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            rf"\begin{{{kind}}}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption[{escape(label)}]{{\footnotesize {escape(note)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9_.+=-]', '-', label)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            r"\begin{tabular}{" + r"@{\hspace{9pt}}".join(groups) + "}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\end{{{kind}}}",
            "",
        ]
    )


def _titles(table: Layout) -> list[str]:
    """What stands over the columns before the numbers."""
    return [table.rows] if table.given else [table.rows, "Clean images"]


def _start(table: Layout, line: Line) -> list[str]:
    return [line.label] if table.given else [line.label, line.given]


def latex(
    records: Sequence[Record], suite: Suite, metrics: Sequence[Metric], marks: str = "fell"
) -> str:
    """A table for a paper of one or two columns; it needs the packages booktabs and graphicx, and
    shrinks to the width of the text if it is wider.

    All numbers have two decimals and stand to the right, so that their points are in line without
    siunitx, whose columns know no underlining.
    """
    table = layout(records, suite, metrics, marks)
    width = len(metrics)
    before = len(_titles(table))

    def over(text: str, columns: int = width) -> str:
        return rf"\multicolumn{{{columns}}}{{c}}{{{text}}}"

    rows = [_latex_row(table, line, before + width * len(table.groups)) for line in table.lines]
    if table.given:
        rows.append(r"\midrule Clean images & " + " & ".join(map(over, table.given)) + r" \\")
    ends = [before + width * (i + 1) for i in range(len(table.groups))]
    arrows = [rf"{m.title} $\{'up' if m.higher else 'down'}arrow$" for m in metrics]
    top = [
        " & ".join([""] * before + [over(escape(name)) for name in table.groups]) + r" \\",
        " ".join(rf"\cmidrule(lr){{{end - width + 1}-{end}}}" for end in ends),
        " & ".join([*_titles(table), *arrows * len(table.groups)]) + r" \\",
        r"\midrule",
    ]
    columns = ["l" + "r" * (before - 1), *["r" * width] * len(table.groups)]
    return dressed(caption(records, suite, metrics, marks), suite.name, columns, [*top, *rows])


def _latex_row(table: Layout, line: Line, columns: int) -> str:
    if not line.cells:
        return rf"\addlinespace \multicolumn{{{columns}}}{{l}}{{{escape(line.label)}}} \\"
    dress = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    cells = [dress[mark] % escape(text) for cell in line.cells for text, mark in cell]
    rule = r"\midrule " if line.rule else ""
    return rule + " & ".join([*map(escape, _start(table, line)), *cells]) + r" \\"


def markdown(
    records: Sequence[Record], suite: Suite, metrics: Sequence[Metric], marks: str = "fell"
) -> str:
    """The same table for a README or an issue."""
    table = layout(records, suite, metrics, marks)
    head = _titles(table)
    head += [f"{_plain(name)} {m.title} {m.arrow}" for name in table.groups for m in metrics]
    rows = [[*map(_plain, _start(table, line)), *_numbers(line)] for line in table.lines]
    if table.given:
        gaps = [""] * (len(metrics) - 1)
        rows.append(["Clean images", *(text for n in table.given for text in (n, *gaps))])
    left = [True] + [False] * (len(head) - 1)
    note = _plain(caption(records, suite, metrics, marks))
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
    judged = (
        f"Not comparable: a scale of {suite.scale}"
        if suite.scale
        else f"Not reproduced: more than {TOLERANCE:g} points away"
    )
    about = caption(records, suite, USUAL, marks="")
    note = f"Each metric: ours, reported, difference. {judged}. {about}"
    columns = [c for c in _columns(rows) if c != "not reproduced" or not suite.scale]
    attacks, defenses = present(records, suite)
    named = {"defense": heads(defenses), "attack": labels(attacks, defenses)}
    lines = [[_text(c, row.get(c), named) for c in columns] for row in rows]
    titles = [_title(c) for c in columns]
    if form == "markdown":
        return markdown_table(titles, lines, [c in WORDS for c in columns]) + f"\n\n{note}\n"
    return _pages(suite, columns, titles, lines, note)


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


def _pages(
    suite: Suite,
    columns: Sequence[str],
    titles: Sequence[str],
    lines: Sequence[Sequence[str]],
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
        texts = [" & ".join(map(escape, row)) + r" \\" for row in rows]
        pages[-1] += [gap + texts[0], *texts[1:]]
    shape = "".join("l" if c in WORDS else "r" for c in columns)
    top = [" & ".join(map(escape, titles)) + r" \\", r"\midrule"]
    label = f"{suite.name}-reported"
    pieces = [dressed(note, label, [shape], [*top, *pages[0]])]
    for number, page in enumerate(pages[1:], 2):
        words = f"{suite.name}, continued."
        pieces.append(dressed(words, f"{label}-{number}", [shape], [*top, *page]))
    return "\n".join(pieces)


def render(
    records: Sequence[Record],
    suite: Suite,
    form: str,
    against: bool = False,
    metrics: Sequence[Metric] = USUAL,
    marks: str = "fell",
) -> str:
    """The table as "latex", "markdown" or "csv"; ``against``: beside the published numbers;
    ``marks``: which defenses may be bold, of ``layout.MARKS``.

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
        return str(frame(records, metrics).to_csv(index=False, float_format="%.4f"))
    draw = latex if form == "latex" else markdown
    return draw(records, suite, metrics, marks)


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

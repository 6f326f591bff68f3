"""Tables in LaTeX that no journal has to shrink: sizes are chosen by how wide the text is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

# points of a table's letters: if there is room, and at least
LARGE = 8
SMALL = 7
# points: a column and a page of text, of the narrowest of article, IEEE and NeurIPS
COLUMN = 229.0
PAGE = 345.0
# the width of letters in their size, those of Computer Modern bold at 7 points, the widest
NARROW = 0.35
USUAL = 0.6
WIDE = 0.8
# points between columns, and more of them between groups of columns
BETWEEN = 6.0
GAP = 3.0


def escape(text: str) -> str:
    """Plain text -> LaTeX."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
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


def row(cells: Sequence[str]) -> str:
    """A row of LaTeX."""
    return " & ".join(cells) + r" \\"


def over(text: str, columns: int) -> str:
    """A cell over several columns."""
    return rf"\multicolumn{{{columns}}}{{c}}{{{text}}}"


def extent(text: str) -> float:
    """About how wide a text is, in the size of its letters."""
    narrow = sum(letter in " .,:;()[]'" for letter in text)
    wide = sum(letter.isupper() or letter in "%±-*" for letter in text)
    return NARROW * narrow + WIDE * wide + USUAL * (len(text) - narrow - wide)


def width(texts: float, groups: Sequence[str], points: int = SMALL) -> float:
    """About how many points wide a table is, if anything more than it is.

    Args:
        texts: the extents of the longest texts of its columns together.
        groups: of columns, "l" or "r" each.
    """
    columns = sum(map(len, groups))
    return points * texts + BETWEEN * columns + GAP * (len(groups) - 1)


def table(
    groups: Sequence[str],
    texts: float,
    body: Sequence[str],
    label: str,
    caption: str,
    notes: str = "",
    shaded: bool = False,
) -> str:
    """The environment around the rows of a table, as wide as a column of a paper if it fits there,
    in letters of 8 points if these fit, else 7.

    Args:
        groups, texts: as in ``width``; groups stand apart.
        body: rows, the head first.
        label: ``tab:`` and this, and its name in a list of tables.
        notes: below the table, by the package threeparttable.
        shaded: cells have colours.
    """
    wide = width(texts, groups) > COLUMN
    room = PAGE if wide else COLUMN
    points = LARGE if width(texts, groups, LARGE) <= room else SMALL
    kind = "table*" if wide else "table"
    packages = ["booktabs"]
    inner = [
        _size(points),
        r"\begin{tabular}{" + r"@{\hspace{9pt}}".join(groups) + "}",
        r"\toprule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    head = [
        rf"\caption[{{{escape(label)}}}]{{\footnotesize {escape(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9_.+=-]', '-', label)}}}",
    ]
    if notes:
        packages.append("threeparttable")
        below = [
            rf"\begin{{tablenotes}}[flushleft]{_size(SMALL)}",
            rf"\item {escape(notes)}",
            r"\end{tablenotes}",
        ]
        inner = [r"\begin{threeparttable}", *head, *inner, *below, r"\end{threeparttable}"]
    else:
        inner = [*head, *inner]
    more = r" and \usepackage[table]{xcolor}" if shaded else ""
    return "\n".join(
        [
            rf"% needs \usepackage{{{','.join(packages)}}}{more}",
            rf"\begin{{{kind}}}[t]",
            r"\centering\setlength{\tabcolsep}{3pt}",
            *inner,
            rf"\end{{{kind}}}",
            "",
        ]
    )


def _size(points: int) -> str:
    return rf"\fontsize{{{points}}}{{{1.2 * points:.1f}}}\selectfont"


def listing(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    left: Sequence[bool],
    label: str,
    note: str,
    names: int = 1,
) -> str:
    """A table of plain text: its head, its lines, which columns stand to the left, and all that is
    to be said of it. What is too wide for a page goes on below, beside its first columns, the
    ``names``.
    """
    columns = list(zip(head, *lines, strict=True))
    extents = [max(map(extent, column)) for column in columns]
    # columns of panels stand below each other, and are as wide as the widest
    widest = max(extents[names:])
    whole = list(range(names, len(columns)))
    panels = parts(whole, lambda n: width(sum(extents[:names]) + n * widest, ["l" * (names + n)]))
    body: list[str] = []
    for panel in panels:
        shown = [*columns[:names], *(columns[i] for i in panel)]
        first, *rows = zip(*(map(escape, column) for column in shown), strict=True)
        body += [r"\midrule[\heavyrulewidth]"] if body else []
        body += [row(first), r"\midrule", *map(row, rows)]
    shape = ["l" if words else "r" for words in left[:names]] + ["r"] * len(panels[0])
    if len(panels) == 1:
        shape = ["l" if words else "r" for words in left]
        texts = sum(extents)
    else:
        texts = sum(extents[:names]) + len(panels[0]) * widest
    return table(["".join(shape)], texts, body, label, note)


T = TypeVar("T")


def parts(groups: Sequence[T], wide: Callable[[int], float]) -> list[Sequence[T]]:
    """Groups of columns in panels below each other, all in one if they fit a page.

    Args:
        wide: how many points so many groups need.
    """
    most = max((n for n in range(1, len(groups) + 1) if wide(n) <= PAGE), default=1)
    # in even shares
    panels = -(-len(groups) // most)
    each = -(-len(groups) // panels)
    return [groups[start : start + each] for start in range(0, len(groups), each)]

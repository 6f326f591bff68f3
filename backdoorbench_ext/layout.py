"""A suite's records laid out as a table, and what its caption must say; text, not yet a format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from .errors import InputError, nearest
from .frame import NAN, Key, Number, summary
from .metrics import COUNTED, Metric, get
from .naming import explained, heads, labels, rate
from .records import Record, outdated, precision
from .registry import parse
from .suite import Suite
from .toolbox.checkout import chosen_on_tests

# more defenses than these stand below each other, not beside
WIDE = 6
# which defenses may be marked: those that lowered ASR, or all; with what a caption says of it
MARKS = {
    "fell": "best defense bold, second underlined, where ASR is below half of No Defense's",
    "all": "best defense bold, second underlined",
}
CAPTIONS = ("short", "full")
# of a number in percent
MOST_DECIMALS = 4
# text and mark of each metric
Cell = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Style:
    """How a table is to look.

    Args:
        marks: of ``MARKS``: which defenses may be marked. One that lets the attack through keeps
            its accuracy, which would be the best of all.
        highlight: a defense whose numbers are shaded, by its name with or without options.
        caption: in LaTeX, "short" with notes below the table, or "full".
    """

    metrics: Sequence[Metric] = tuple(get(name) for name in COUNTED)
    marks: str = "fell"
    decimals: int = 2
    highlight: str = ""
    caption: str = "short"

    def __post_init__(self) -> None:
        """Raises: InputError: a choice that there is not."""
        if self.marks not in MARKS:
            raise InputError(f"marks must be {' or '.join(MARKS)}, not {self.marks!r}")
        if self.caption not in CAPTIONS:
            raise InputError(f"caption must be {' or '.join(CAPTIONS)}, not {self.caption!r}")
        if not 0 <= self.decimals <= MOST_DECIMALS:
            raise InputError(f"decimals must be 0 to {MOST_DECIMALS}, not {self.decimals}")

    def shades(self, defense: str) -> bool:
        """Whether a defense is to be shaded."""
        return bool(self.highlight) and self.highlight in (defense, defense.partition("[")[0])


@dataclass(frozen=True)
class Line:
    """A row of a table: its label, what stands in the column of clean images, and a cell for each
    group of columns; without cells a heading.
    """

    label: str
    given: str = ""
    cells: tuple[Cell, ...] = ()
    rule: bool = False
    shaded: bool = False


@dataclass(frozen=True)
class Layout:
    """A table: what its groups of columns are called, what its rows are, the clean images given to
    each group where a group is a defense, which groups are shaded, and the metrics of each cell.
    """

    groups: list[str]
    rows: str
    lines: list[Line]
    given: list[str]
    shaded: list[bool]
    metrics: Sequence[Metric]

    @property
    def marked(self) -> bool:
        """Whether any number has a mark."""
        return any(mark for line in self.lines for cell in line.cells for _, mark in cell)

    def part(self, start: int, end: int) -> Layout:
        """Some of the groups of columns."""
        lines = [replace(line, cells=line.cells[start:end]) for line in self.lines]
        return replace(
            self,
            groups=self.groups[start:end],
            lines=lines,
            given=self.given[start:end],
            shaded=self.shaded[start:end],
        )


@dataclass(frozen=True)
class Block:
    """The part of a table that is of one data set and poisoning rate.

    Args:
        attacks: with their rates, which may be their own.
        cells: by (attack, defense), the average over all attacks under "Average".
    """

    dataset: str
    rate: float
    attacks: list[tuple[str, float]]
    cells: Mapping[tuple[str, str], Cell]

    @property
    def averaged(self) -> bool:
        return any(attack == "Average" for attack, _ in self.cells)


def mark(values: Sequence[float], higher: bool, decimals: int = 2) -> list[str]:
    """ "best", "second" or "" for each value, compared as printed.

    Equal values share a mark, nan has none.
    """
    printed = [round(v, decimals) for v in values]
    ranks = sorted({v for v in printed if not math.isnan(v)}, reverse=higher)
    names = dict(zip(ranks, ("best", "second"), strict=False))
    return [names.get(v, "") for v in printed]


def present(records: Sequence[Record], suite: Suite) -> tuple[list[str], list[str]]:
    """The attacks and the defenses that have records, in the suite's order."""
    attacks = {r["cell"]["attack"] for r in records}
    defenses = {r["cell"]["defense"] for r in records}
    return [a for a in suite.attacks if a in attacks], [d for d in suite.defenses if d in defenses]


def layout(records: Sequence[Record], suite: Suite, style: Style) -> Layout:
    """Attacks down and defenses across, or the other way round where there are more than ``WIDE``
    defenses.

    Raises:
        InputError: the defense to highlight has no record.
    """
    attacks, defenses = present(records, suite)
    if style.highlight and not any(map(style.shades, defenses)):
        raise nearest(style.highlight, defenses, "defenses of this table")
    numbers = summary(records, [*style.metrics, get("asr")])
    blocks = _blocks(numbers, suite, attacks, defenses, style)
    if len(defenses) <= WIDE:
        return _attacks_down(blocks, records, suite, style)
    return _defenses_down(blocks, records, suite, style)


def _blocks(
    numbers: Mapping[Key, Mapping[str, Number]],
    suite: Suite,
    attacks: Sequence[str],
    defenses: Sequence[str],
    style: Style,
) -> list[Block]:
    """Attacks with a rate of their own stand in the block of the suite's first rate."""
    there = {cell[:3] for cell in numbers}
    blocks = []
    for dataset in suite.datasets:
        for share in suite.rates:
            first = share == suite.rates[0]
            rows = []
            for attack in attacks:
                own = suite.own_rates.get(attack, share)
                if (first or attack not in suite.own_rates) and (dataset, own, attack) in there:
                    rows.append((attack, own))
            if rows:
                cells = _cells(numbers, dataset, rows, defenses, style)
                blocks.append(Block(dataset, share, rows, cells))
    return blocks


def _cells(
    numbers: Mapping[Key, Mapping[str, Number]],
    dataset: str,
    attacks: Sequence[tuple[str, float]],
    defenses: Sequence[str],
    style: Style,
) -> dict[tuple[str, str], Cell]:
    """Numbers as text with their marks; No Defense is not ranked."""
    rows: dict[str, dict[str, Mapping[str, Number]]] = {}
    for attack, own in attacks:
        cells = {d: numbers.get((dataset, own, attack, d)) for d in defenses}
        rows[attack] = {d: cell for d, cell in cells.items() if cell is not None}
    average = _average([row for attack, row in rows.items() if attack != "none"], style.metrics)
    if average:
        rows["Average"] = average
    marked = {}
    for attack, row in rows.items():
        ranked = _fell(row) if style.marks == "fell" and attack != "none" else _defenses(row)
        given = {metric.key: _marks(row, ranked, metric, style) for metric in style.metrics}
        for d, cell in row.items():
            marked[attack, d] = tuple(
                (cell[m.key].text(style.decimals), given[m.key].get(d, "")) for m in style.metrics
            )
    return marked


def _average(
    rows: Sequence[Mapping[str, Mapping[str, Number]]], metrics: Sequence[Metric]
) -> dict[str, Mapping[str, Number]]:
    """The mean over attacks of the means, of every defense that all of several attacks have."""
    if len(rows) < 2:
        return {}
    everywhere = [d for d in rows[0] if all(d in row for row in rows)]
    keys = [*(m.key for m in metrics), "asr"]
    return {
        d: {key: Number(fmean(row[d][key].mean for row in rows), count=1) for key in keys}
        for d in everywhere
    }


def _defenses(row: Mapping[str, object]) -> list[str]:
    return [d for d in row if d.partition("[")[0] != "none"]


def _fell(row: Mapping[str, Mapping[str, Number]]) -> list[str]:
    """The defenses whose ASR is below half of No Defense's; none, where that is not known."""
    bare = next((cell["asr"].mean for d, cell in row.items() if d.partition("[")[0] == "none"), NAN)
    return [d for d in _defenses(row) if row[d]["asr"].mean < bare / 2]


def _marks(
    row: Mapping[str, Mapping[str, Number]], ranked: Sequence[str], metric: Metric, style: Style
) -> dict[str, str]:
    means = [row[d][metric.key].mean for d in ranked]
    return dict(zip(ranked, mark(means, metric.higher, style.decimals), strict=True))


def _own(share: float, usual: float) -> str:
    """What is said of an attack whose rate is not that of its block."""
    return f", rate {rate(share)}" if share != usual else ""


def _heading(block: Block, blocks: Sequence[Block]) -> list[Line]:
    if len(blocks) == 1:
        return []
    return [Line(f"{block.dataset}, poisoning rate {rate(block.rate)}")]


def _attacks_down(
    blocks: Sequence[Block], records: Sequence[Record], suite: Suite, style: Style
) -> Layout:
    attacks, defenses = present(records, suite)
    called = labels(attacks)
    empty = _empty(style.metrics)
    lines = []
    for block in blocks:
        lines += _heading(block, blocks)
        for attack, share in block.attacks:
            cells = tuple(block.cells.get((attack, d), empty) for d in defenses)
            lines.append(Line(called[attack] + _own(share, block.rate), "", cells))
        if block.averaged:
            cells = tuple(block.cells.get(("Average", d), empty) for d in defenses)
            lines.append(Line("Average", "", cells, rule=True))
    given = _given(records)
    counts = [_each(suite, {s: n for (s, own), n in given.items() if own == d}) for d in defenses]
    shaded = list(map(style.shades, defenses))
    return Layout(list(heads(defenses).values()), "Attack", lines, counts, shaded, style.metrics)


def _defenses_down(
    blocks: Sequence[Block], records: Sequence[Record], suite: Suite, style: Style
) -> Layout:
    attacks, defenses = present(records, suite)
    called = labels(attacks)
    own: dict[str, str] = {}
    for block in blocks:
        for attack, share in block.attacks:
            own.setdefault(attack, _own(share, block.rate))
    columns = [attack for attack in attacks if attack in own]
    groups = [called[attack] + own[attack] for attack in columns]
    if len(columns) > 1:
        columns.append("Average")
        groups.append("Average")
    given = _given(records)
    empty = _empty(style.metrics)
    lines = []
    for block in blocks:
        lines += _heading(block, blocks)
        for d, name in heads(defenses).items():
            cells = tuple(block.cells.get((attack, d), empty) for attack in columns)
            images = given.get((block.dataset, d), "--")
            lines.append(Line(name, images, cells, shaded=style.shades(d)))
    return Layout(groups, "Defense", lines, [], [False] * len(groups), style.metrics)


def _empty(metrics: Sequence[Metric]) -> Cell:
    return (("--", ""),) * len(metrics)


def _given(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """The clean images given, by data set and defense."""
    return {
        (r["cell"]["dataset"], r["cell"]["defense"]): str(r["given"]["clean_images"])
        for r in records
    }


def _each(suite: Suite, values: Mapping[str, str]) -> str:
    """The values of several data sets in the suite's order, once if they are the same."""
    return " / ".join(dict.fromkeys(values[d] for d in suite.datasets if d in values))


def mixed(records: Sequence[Record]) -> list[str]:
    """The attacks whose poisoned images were not the same in all records of a data set, rate and
    seed: a picture was changed, or a trigger learned anew.
    """
    seen: dict[tuple[object, ...], set[str]] = {}
    for r in records:
        key = (r["cell"]["attack"], r["cell"]["dataset"], r["spec"]["rate"], r["spec"]["seed"])
        seen.setdefault(key, set()).update({r["surroundings"].get("poison")} - {None})
    changed = [str(attack) for (attack, *_), digests in seen.items() if len(digests) > 1]
    return list(dict.fromkeys(changed))


def caption(records: Sequence[Record], suite: Suite, style: Style, marked: bool = True) -> str:
    """What a reader must know of the numbers: ``headline`` and ``notes``."""
    return f"{headline(records, suite)} {notes(records, suite, style, marked)}"


def headline(records: Sequence[Record], suite: Suite) -> str:
    """What a table is of, in a sentence."""
    datasets = _datasets(records, suite)
    return (
        f"{suite.name}: {', '.join(datasets)}; percent; poisoning rate {_rates(suite)}; "
        f"{_seeds(records)}."
    )


def notes(records: Sequence[Record], suite: Suite, style: Style, marked: bool = True) -> str:
    """Counts, options, protocol, where the numbers come from, and what the marks mean if there are
    any.
    """
    attacks, defenses = present(records, suite)
    called = labels(attacks)
    named = heads(defenses)
    options = explained(named, called)
    unlike = [called[attack] for attack in mixed(records)]
    parts = [_counts(records, suite, style.metrics)]
    if marked:
        parts.append(MARKS[style.marks])
    if unlike:
        parts.append(f"defenses did not have the same poisoned images of: {', '.join(unlike)}")
    older = [called[attack] for attack in outdated(records, "attack")]
    older += [named[defense] for defense in outdated(records, "defense")]
    if older:
        parts.append(f"made by earlier versions of: {', '.join(older)}")
    chosen = [title for text, title in named.items() if chosen_on_tests(parse(text)[0])]
    if chosen:
        parts.append(f"chosen on the test set by its own script: {', '.join(chosen)}")
    if options:
        parts.append("options: " + "; ".join(options))
    parts.append("protocol " + _protocols(suite, _datasets(records, suite)))
    parts.append(_origin(records))
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def _datasets(records: Sequence[Record], suite: Suite) -> list[str]:
    there = {r["cell"]["dataset"] for r in records}
    return [d for d in suite.datasets if d in there]


def _rates(suite: Suite) -> str:
    words = " unless said" if suite.own_rates else ""
    return ", ".join(map(rate, suite.rates)) + words


def _seeds(records: Sequence[Record]) -> str:
    seeds = sorted({r["spec"]["seed"] for r in records})
    if len(seeds) == 1:
        return f"one run, seed {seeds[0]}"
    return f"mean and standard deviation over the seeds {', '.join(map(str, seeds))}"


def _counts(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric]) -> str:
    """How many images the numbers are over; metrics over the same images are named together."""
    backwards = records[::-1]
    trained = {r["cell"]["dataset"]: str(r["given"]["train_images"]) for r in backwards}
    over: dict[str, list[str]] = {}
    for metric in metrics:
        counted = {
            r["cell"]["dataset"]: str(r["metrics"][metric.key][1])
            for r in backwards
            if metric.key in r["metrics"]
        }
        if counted:
            images = _each(suite, counted) + (" test images" if metric.key == "ca" else "")
            over.setdefault(images, []).append(metric.title)
    counts = [f"{' and '.join(titles)} over {images}" for images, titles in over.items()]
    return ", ".join([f"{_each(suite, trained)} training images", *counts])


def _protocols(suite: Suite, datasets: Sequence[str]) -> str:
    """The protocol of the first data set, and of the others what differs from it."""
    told = {d: str(suite.protocol.on(d)).split(", ") for d in datasets}
    first = told[datasets[0]]
    parts = [", ".join(first)]
    for dataset in datasets[1:]:
        unlike = [part for part in told[dataset] if part not in first]
        if unlike:
            parts.append(f"{dataset}: {', '.join(unlike)}")
    return "; ".join(parts)


def _origin(records: Sequence[Record]) -> str:
    """The devices with their precisions, and the commit."""
    machines: dict[str, list[str]] = {}
    for r in records:
        machines.setdefault(r["surroundings"]["device"], []).append(precision(r))
    devices = [
        f"{device} ({' and '.join(sorted(set(kinds)))})" if all(kinds) else device
        for device, kinds in machines.items()
    ]
    commits = sorted({r["surroundings"]["commit"] or "unknown" for r in records})
    told = f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits, see the CSV"
    return f"{'; '.join(devices)}, {told}"

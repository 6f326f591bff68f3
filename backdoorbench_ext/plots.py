"""Plots of records: CA, ASR and ARR in several ways, losses, learning curves, times."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from . import gather
from .errors import InputError, one_line
from .files import write_whole
from .frame import Key, frame, summary
from .layout import present
from .metrics import Metric
from .naming import explained, heads, labels, rate
from .records import Record
from .suite import Suite
from .tables import USUAL

# also told apart in grey and by the colour-blind
COLOURS = {"ca": "#3b6fb6", "asr": "#c8443c", "arr": "#7aa95c", "der": "#8d6bb0"}
# Told apart by the colour-blind (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/).
OKABE_ITO = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#0072B2",
    "#CC79A7",
    "#999999",
)
# further ones (Tol, https://sronpersonalpages.nl/~pault), with marks that tell all apart
MORE = (
    "#882255",
    "#44AA99",
    "#999933",
    "#332288",
    "#AA4499",
    "#661100",
    "#6699CC",
    "#117733",
)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", ":", "-.")
# a defense has one colour and mark in all pictures
ORDER = (
    *("none", "abl", "nad", "fp", "cbd", "mcci", "dbd", "ft"),
    *("anp", "asd", "clp", "ft_sam", "i_bau", "mcr", "nab", "pdb"),
)
# inches: what a screen has, and what papers have
SCREEN = 14.0
WIDTHS = {"column": 3.3, "text": 6.9}
NARROWEST = 2.0
# points of the smallest letters
SMALL = 7
STYLE: Any = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # a path with two dollar signs is no formula
    "text.parse_math": False,
    # or the names of an SVG's parts would be others in every file
    "svg.hashsalt": "bbx",
}
WORDS = {
    "ca": "CA, clean accuracy",
    "asr": "ASR, attack success",
    "arr": "ARR, recovered",
    "der": "DER, defense effectiveness",
}


def sheet(rows: int, columns: int, size: tuple[float, float], **more: Any) -> tuple[Figure, Any]:
    """A figure with a grid of axes (rows, columns), none of which is in the way of the others."""
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **more
    )
    return figure, axes


def inches(text: str) -> float:
    """The width that pictures are drawn for: of ``WIDTHS``, in inches, or a screen's for "".

    Raises:
        InputError: neither.
    """
    if not text:
        return SCREEN
    try:
        width = WIDTHS.get(text) or float(text)
    except ValueError:
        width = 0.0
    if not NARROWEST <= width <= SCREEN:
        words = f"{NARROWEST:g} to {SCREEN:g} inches"
        raise InputError(f"--width must be {', '.join(WIDTHS)} or {words}, not {text!r}")
    return width


def across(panels: int, each: float, page: float, most: int = 4) -> tuple[int, float]:
    """How many panels stand beside each other, and how wide that is: on a screen as wide as it
    comes, else the page.
    """
    beside = max(1, min(most, panels, int(page / each)))
    return beside, beside * each if page == SCREEN else page


def unused(axes: Any, shown: int) -> None:
    """Hide the axes behind the last one that shows something."""
    for ax in axes.flat[shown:]:
        ax.set_axis_off()


def wrapped(name: str, letters: int) -> str:
    """A title in as many lines as it needs, broken between its parts, then at spaces and after
    commas.
    """
    if len(name) <= letters:
        return name
    parts = [re.sub(r",(?=\S)", ", ", part) for part in name.split("   ")]
    return "\n".join(line for part in parts for line in textwrap.wrap(part, letters))


def colour(metric: Metric, place: int) -> str:
    """A metric's colour; those of plugins have the next one that is free."""
    return COLOURS.get(metric.key, OKABE_ITO[(place + 4) % len(OKABE_ITO)])


def _looks(defenses: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How the points and lines of defenses look: the colour and the mark are the method's, its
    variants have other marks and lines.
    """
    found: dict[str, dict[str, Any]] = {}
    variants: Counter[str] = Counter()
    for defense in defenses:
        name = defense.partition("[")[0]
        number = variants[name]
        variants[name] += 1
        place = ORDER.index(name) if name in ORDER else crc32(name.encode())
        colours = OKABE_ITO + MORE
        found[defense] = {
            "color": colours[place % len(colours)],
            "marker": MARKS[(place + number) % len(MARKS)],
            "ls": LINES[number % len(LINES)],
        }
    return found


def _explain(figure: Figure, *names: Mapping[str, str]) -> None:
    """Under a figure, which grows by as much, all options of what it shows: it may stand without
    its table.
    """
    lines = textwrap.wrap("; ".join(explained(*names)), int(19 * figure.get_figwidth()))
    if lines:
        figure.set_figheight(figure.get_figheight() + 0.12 * len(lines))
        figure.supxlabel("\n".join(lines), fontsize=SMALL)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Above a figure, which grows by as much: one line or mark a name."""
    longest = max(map(len, names))
    columns = max(1, min(4, len(names), int(figure.get_figwidth() / (0.065 * longest + 0.4))))
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(names) // columns))
    words: Any = {"loc": "outside upper center", "frameon": False, "fontsize": SMALL}
    figure.legend(handles, names, ncols=columns, **words)


def _names(records: Sequence[Record], suite: Suite) -> tuple[dict[str, str], dict[str, str]]:
    """The short titles of the attacks and the defenses that have records.

    Raises:
        InputError: no records.
    """
    gather.check(records, suite)
    attacks, defenses = present(records, suite)
    return labels(attacks), heads(defenses)


def _sets(records: Sequence[Record], suite: Suite) -> list[str]:
    there = {r["cell"]["dataset"] for r in records}
    return [dataset for dataset in suite.datasets if dataset in there]


def bars(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """Groups of bars, as ``gather.bars`` has them, with whiskers; ``page``: inches.

    Raises:
        InputError: no records.
    """
    panels = gather.bars(records, suite, metrics)
    groups = len(panels[0].groups)
    longest = max(panel.longest for panel in panels)
    room = max(1.0 if groups < 10 else 0.6, 0.064 * longest)
    each = max(3.2, groups * room + 0.6)
    # names stand upright where there is no room
    upright = each > page
    columns, width = across(len(panels), each, page, most=3)
    rows = -(-len(panels) // columns)
    height = 2.5 + (0.055 * longest if upright else 0)
    with plt.rc_context(STYLE):
        figure, axes = sheet(rows, columns, (width, height * rows), sharey=True)
        unused(axes, len(panels))
        for ax, panel in zip(axes.flat, panels, strict=False):
            _bars(ax, panel, metrics, upright)
            ax.set_title(wrapped(panel.title, int(14 * width / columns)), fontsize=8)
        for ax in axes[:, 0]:
            ax.set_ylabel("percent")
        patches = [Patch(color=colour(m, i)) for i, m in enumerate(metrics)]
        legend(figure, patches, [f"{WORDS.get(m.key, m.title)} {m.arrow}" for m in metrics])
        attacks, defenses = _names(records, suite)
        _explain(figure, defenses, attacks)
    return figure


def _bars(ax: Any, panel: gather.Panel, metrics: Sequence[Metric], upright: bool) -> None:
    step = 0.81 / len(metrics)
    grey: Any = {"ha": "center", "va": "bottom", "rotation": 90, "color": "#999999"}
    for x, (_, own) in enumerate(panel.groups):
        if not own:
            # or the gap might be taken for bars of no height
            ax.annotate("not run", (x, 3), fontsize=SMALL, **grey)
    for i, metric in enumerate(metrics):
        shift = step * (i - (len(metrics) - 1) / 2)
        for x, (_, own) in enumerate(panel.groups):
            bar = own.get(metric.key)
            if bar is None:
                continue
            ends = [[max(0, bar.mean - bar.low)], [max(0, bar.high - bar.mean)]]
            ax.bar(x + shift, bar.mean, 0.93 * step, color=colour(metric, i))
            ax.errorbar(x + shift, bar.mean, ends, color="black", lw=0.7, capsize=1.5)
            place = (x + shift, bar.high + 1)
            words: Any = {"ha": "center", "va": "bottom", "rotation": 90 if upright else 0}
            ax.annotate(f"{bar.mean:.0f}", place, fontsize=SMALL, **words)
    names = [name.replace("\n", " ") if upright else name for name, _ in panel.groups]
    turned = 90 if upright else 0
    ax.set_xticks(range(len(panel.groups)), names, fontsize=SMALL, rotation=turned)
    ax.set_xlim(-0.6, len(panel.groups) - 0.4)
    ax.set_ylim(0, 120 if upright else 112)
    ax.set_yticks(range(0, 101, 20))


def heatmap(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """The whole grid: defenses down, attacks across, a panel a metric, its number in every field;
    grey where no record is. Good is blue in all of them.
    """
    grid = gather.heatmap(records, suite, metrics)
    names = 0.07 * max(map(len, grid.rows)) + 0.3
    each = 0.3 + (0.42 if page == SCREEN else 0.27) * len(grid.columns)
    high = 0.24 if page == SCREEN else 0.16
    beside = len(metrics) if names + each * len(metrics) <= page else 1
    down = -(-len(metrics) // beside)
    width = names + each * beside if page == SCREEN else page
    below = 0.07 * max(len(line) for name in grid.columns for line in name.split("\n"))
    with plt.rc_context(STYLE):
        size = (width, (0.4 + high * len(grid.rows)) * down + below + 0.1)
        figure, axes = sheet(down, beside, size, sharey=True, sharex=True)
        for ax, metric in zip(axes.flat, metrics, strict=True):
            _heat(ax, grid.values[metric.key], metric)
            ax.set_xticks(range(len(grid.columns)), grid.columns, fontsize=SMALL, rotation=90)
            ax.set_yticks(range(len(grid.rows)), grid.rows, fontsize=SMALL)
            ax.tick_params(length=0)
            ax.set_title(f"{metric.title} {metric.arrow}", fontsize=8)
        attacks, defenses = _names(records, suite)
        _explain(figure, defenses, attacks)
    return figure


def _heat(ax: Any, values: Sequence[Sequence[float]], metric: Metric) -> None:
    name = "RdYlBu" if metric.higher else "RdYlBu_r"
    palette = plt.get_cmap(name).with_extremes(bad="#dddddd")
    ax.imshow(values, vmin=0, vmax=100, cmap=palette, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if not math.isnan(value):
                dark = value < 12 or value > 88
                # not black, which a dark page turns: the field stays as it is
                ink = "white" if dark else "#111111"
                ax.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=ink)


def scatter(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """ASR against CA, a point a cell, a colour and mark a defense, a panel a data set: good is at
    the lower right. A line joins the cells that none beats in both (the Pareto front).
    """
    _, names = _names(records, suite)
    means = summary(records, USUAL)
    sets = _sets(records, suite)
    columns, width = across(len(sets), min(3.2, page), page)
    rows = -(-len(sets) // columns)
    looks = _looks(names)
    with plt.rc_context(STYLE):
        figure, axes = sheet(rows, columns, (width, 2.4 * rows), sharey=True)
        unused(axes, len(sets))
        for ax, dataset in zip(axes.flat, sets, strict=False):
            for defense, name in names.items():
                own = [n for key, n in means.items() if (key[0], key[3]) == (dataset, defense)]
                ca = [numbers["ca"].mean for numbers in own]
                asr = [numbers["asr"].mean for numbers in own]
                points: Any = {"ls": "", "ms": 5, "mew": 0, "alpha": 0.85, "label": name}
                ax.plot(ca, asr, **looks[defense] | points)
            front = gather.front(
                (n["ca"].mean, n["asr"].mean) for key, n in means.items() if key[0] == dataset
            )
            ax.step(*zip(*front, strict=True), where="pre", lw=0.7, color="#999999", zorder=0)
            ax.set_title(dataset, fontsize=8)
            ax.set_xlabel("CA, percent →")
            low, high = ax.get_xlim()
            # ten points at least: chance must not look like a difference
            middle = (low + high) / 2
            ax.set_xlim(min(low, middle - 5), max(high, middle + 5))
            ax.set_ylim(-4, 104)
        for ax in axes[:, 0]:
            ax.set_ylabel("← ASR, percent")
        legend(figure, *axes[0, 0].get_legend_handles_labels())
        _explain(figure, names)
    return figure


def rates(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """Each metric over the poisoning rate, a row an attack (and data set), a line a defense.

    Raises:
        InputError: no records, or of one rate only.
    """
    attacks, names = _names(records, suite)
    means = summary(records, metrics)
    shares: dict[tuple[str, str], set[float]] = {}
    for dataset, share, attack, _ in means:
        shares.setdefault((dataset, attack), set()).add(share)
    panels = {
        (where[0], attacks[where[1]]): {
            key: n for key, n in means.items() if (key[0], key[2]) == where
        }
        for where, own in shares.items()
        if len(own) > 1
    }
    if not panels:
        raise InputError(
            f"{suite.name} has records of one poisoning rate only: nothing to draw over it"
        )
    return _by_metric(panels, metrics, names, _over_rates, "poisoning rate, percent", page)


def _by_metric(
    panels: Mapping[tuple[str, str], Any],
    metrics: Sequence[Metric],
    names: Mapping[str, str],
    draw: Callable[..., None],
    horizontal: str,
    page: float,
) -> Figure:
    """A row a data set and attack, a column a metric; ``draw`` fills each from the row's own."""
    width = min(2.4 * len(metrics), page)
    size = (width, 1.7 * len(panels) + 0.3)
    with plt.rc_context(STYLE):
        figure, axes = sheet(len(panels), len(metrics), size, sharex=True, sharey=True)
        for row, ((dataset, attack), own) in zip(axes, panels.items(), strict=True):
            for ax, metric in zip(row, metrics, strict=True):
                draw(ax, own, names, metric)
                title = f"{metric.title}   {attack}, {dataset}"
                title = wrapped(title, int(15 * width / len(metrics)))
                ax.set_title(title, fontsize=SMALL)
            row[0].set_ylabel("percent")
        axes[-1, len(metrics) // 2].set_xlabel(horizontal)
        legend(figure, *axes[0, 0].get_legend_handles_labels())
        _explain(figure, names)
    return figure


def _over_rates(
    ax: Any, means: Mapping[Key, Any], names: Mapping[str, str], metric: Metric
) -> None:
    """A line a defense, over the rates of an attack."""
    looks = _looks(names)
    for defense, name in names.items():
        own = sorted((key[1], n[metric.key].mean) for key, n in means.items() if key[3] == defense)
        line: Any = {"ms": 3.5, "lw": 1, "label": name}
        shares = [100 * share for share, _ in own]
        ax.plot(shares, [value for _, value in own], **looks[defense], **line)
    ax.set_ylim(-4, 104)


# a probe that is a point of a curve between two networks
POINT = re.compile(r"t = ([0-9.]+)")


def curve(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """Each metric along the curve of MCR, a panel a data set and attack, a line a defense and seed;
    a dot where its model was taken.

    Raises:
        InputError: no record has points of a curve.
    """
    attacks, names = _names(records, suite)
    panels: dict[tuple[str, str], list[Record]] = {}
    several = len({record["spec"]["rate"] for record in records}) > 1
    for record in records:
        if any(map(POINT.fullmatch, record["probes"])):
            attack = attacks[record["cell"]["attack"]]
            if several:
                attack = f"{attack}, {rate(record['spec']['rate'])}"
            panels.setdefault((record["cell"]["dataset"], attack), []).append(record)
    if not panels:
        raise InputError(f"{suite.name} has no records with points of a curve, as MCR's have them")
    drawn = {record["cell"]["defense"] for own in panels.values() for record in own}
    names = {defense: name for defense, name in names.items() if defense in drawn}
    return _by_metric(panels, metrics, names, _along, "place on the curve, t", page)


def _along(ax: Any, records: Sequence[Record], names: Mapping[str, str], metric: Metric) -> None:
    """A line a record, over the points of its curve."""
    looks = _looks(names)
    seen = set()
    for record in records:
        defense = record["cell"]["defense"]
        found = {POINT.fullmatch(name): hits for name, hits in record["probes"].items()}
        values = {
            float(at[1]): metric.of({"metrics": hits}, None) for at, hits in found.items() if at
        }
        points = sorted((t, value) for t, value in values.items() if value is not None)
        look = looks[defense]
        label = names[defense] if defense not in seen else None
        seen.add(defense)
        ats = [t for t, _ in points]
        ax.plot(ats, [value for _, value in points], **look, ms=2, lw=1, label=label)
        for t in record["curves"].get("t", []):
            ax.plot([t], [values.get(t, math.nan)], "o", ms=6, mfc="none", color=look["color"])
    ax.set_ylim(-4, 104)


KINDS = {
    ", clean": ("clean images", COLOURS["ca"]),
    ", poisoned": ("poisoned images", COLOURS["asr"]),
    "": ("training loss", "#999999"),
}


def losses(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
    audited: bool = False,
) -> Figure:
    """The training losses over the epochs, a panel a cell of the first seed, its stages one after
    the other; ``audited``: of the cells that tell clean from poisoned alone.

    Raises:
        InputError: as ``gather.losses``.
    """
    shown = gather.losses(records, suite, audited)
    columns, width = across(len(shown), 2.3, page)
    down = -(-len(shown) // columns)
    if page == SCREEN:
        width = max(4.2, width)
    with plt.rc_context(STYLE):
        figure, axes = sheet(down, columns, (width, 1.8 * down + 0.2))
        unused(axes, len(shown))
        lines: dict[str, Any] = {}
        for ax, training in zip(axes.flat, shown, strict=False):
            _losses(ax, training, lines)
        legend(figure, list(lines.values()), list(lines))
        for ax in axes.flat[max(0, len(shown) - columns) : len(shown)]:
            ax.set_xlabel("epoch")
        figure.supylabel("loss", fontsize=8)
        attacks, defenses = _names(records, suite)
        _explain(figure, defenses, attacks)
    return figure


def _losses(ax: Any, training: gather.Training, lines: dict[str, Any]) -> None:
    """A cell's losses; ``lines`` collects one of each kind for the legend."""
    looks: Any = {"marker": "o", "lw": 1, "ms": 1.5}
    for stage in training.stages:
        for kind, (word, hue) in KINDS.items():
            values = stage.losses.get(kind)
            if values:
                epochs = range(stage.start + 1, stage.start + len(values) + 1)
                lines[word] = ax.plot(epochs, values, color=hue, **looks)[0]
        if stage.start:
            ax.axvline(stage.start + 0.5, color="#555555", lw=0.6, ls=":")
    names, rows = training.names()
    place: Any = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
    for name, left, row in names:
        at = (left + 0.5, 1)
        ax.annotate(name, at, (0, 1 + 8 * row), fontsize=SMALL, color="#555555", **place)
    ax.set_title(wrapped(training.title, 42), fontsize=SMALL, pad=4 + 8 * rows)


def learning(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """CA and ASR of test images over the seconds of a training, as ``--audit`` logs them, a row an
    attack (and data set and rate), a colour a defense of the first seed, a line a stage of it.

    Raises:
        InputError: as ``gather.learning``.
    """
    shown = gather.learning(records, suite)
    attacks, names = _names(records, suite)
    drawn = {line.defense for lines in shown.values() for line in lines}
    defenses = {d: name for d, name in names.items() if d in drawn}
    width = min(6.4, page) if page == SCREEN else page
    with plt.rc_context(STYLE):
        size = (width, 1.7 * len(shown) + 0.2)
        # one range of seconds: rows are compared as well
        figure, axes = sheet(len(shown), 2, size, sharey=True, sharex=True)
        lines: dict[str, Any] = {}
        for row, ((attack, dataset, share), own) in zip(axes, shown.items(), strict=True):
            where = f"{attacks[attack]}, {dataset}, {rate(share)}"
            lines |= _learning(row, own, defenses, where)
            for ax in row:
                ax.set_title(wrapped(ax.get_title(), int(7.5 * width)), fontsize=SMALL)
        for ax in axes[-1]:
            ax.set_xlabel("seconds of training")
        legend(figure, list(lines.values()), list(lines))
        _explain(figure, defenses, {attack: attacks[attack] for attack, _, _ in shown})
    return figure


def _learning(
    row: Any, own: Sequence[gather.Line], defenses: Mapping[str, str], where: str
) -> dict[str, Any]:
    """A row of learning curves; one line of each defense, by its title."""
    drawn = {}
    looks = _looks(defenses)
    for line in own:
        look: Any = looks[line.defense] | {"lw": 1, "ms": 2}
        for ax, values in zip(row, (line.ca, line.asr), strict=True):
            drawn[defenses[line.defense]] = ax.plot(line.seconds, values, **look)[0]
    for ax, metric in zip(row, ("CA", "ASR"), strict=True):
        ax.set_title(f"{metric}   {where}")
        ax.set_ylim(-4, 104)
        ax.grid(lw=0.3)
    row[0].set_ylabel("percent")
    return drawn


# an option whose values span more than this factor is drawn on a logarithmic scale
SPAN = 15


def sensitivity(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """Each metric over one option of a defense, a row an option (and data set), a line an attack.

    Raises:
        InputError: as ``gather.sensitivity``.
    """
    shown = gather.sensitivity(records, suite, metrics)
    lines = list(dict.fromkeys(line for own in shown.values() for line in own))
    width = min(2.4 * len(metrics), page)
    with plt.rc_context(STYLE):
        size = (width, 1.9 * len(shown))
        figure, axes = sheet(len(shown), len(metrics), size, sharey=True, sharex="row")
        drawn: dict[str, Any] = {}
        for row, ((defense, option, dataset), own) in zip(axes, shown.items(), strict=True):
            for ax, metric in zip(row, metrics, strict=True):
                for line, points in own.items():
                    place = lines.index(line)
                    look: Any = {"color": OKABE_ITO[place % 8], "marker": MARKS[place % 10]}
                    heights = [numbers[metric.key] for _, numbers in points]
                    drawn[line] = ax.plot(
                        [value for value, _ in points], heights, ms=3.5, lw=1, **look
                    )[0]
                title = f"{metric.title}   {defense}, {dataset}"
                ax.set_title(wrapped(title, int(15 * width / len(metrics))), fontsize=SMALL)
                ax.set_xlabel(option)
                ax.set_ylim(-4, 104)
                values = [value for points in own.values() for value, _ in points]
                if min(values) > 0 and max(values) / min(values) > SPAN:
                    ax.set_xscale("log")
            row[0].set_ylabel("percent")
        legend(figure, list(drawn.values()), list(drawn))
    return figure


def times(
    records: Sequence[Record],
    suite: Suite,
    metrics: Sequence[Metric] = USUAL,
    page: float = SCREEN,
) -> Figure:
    """Seconds of training by defense, a panel a data set: the mean over attacks and seeds, a dot a
    run. A repair counts its victim's, too.
    """
    _, names = _names(records, suite)
    data = frame(records, ())
    sets = _sets(records, suite)
    with plt.rc_context(STYLE):
        columns, width = across(len(sets), min(3.2, page), page)
        rows = -(-len(sets) // columns)
        size = (width + (0.8 if page == SCREEN else 0), (0.6 + 0.22 * len(names)) * rows)
        figure, axes = sheet(rows, columns, size, sharey=True)
        unused(axes, len(sets))
        for ax, dataset in zip(axes.flat, sets, strict=False):
            for y, defense in enumerate(names):
                rows = (data["dataset"] == dataset) & (data["defense"] == defense)
                own = data[rows]["training_seconds"]
                ax.barh(y, own.mean(), 0.7, color=COLOURS["ca"])
                ax.plot(own, [y] * len(own), ".", color="black", ms=3, alpha=0.6)
            ax.set_yticks(range(len(names)), list(names.values()))
            ax.set_title(dataset, fontsize=8)
            ax.set_xlabel("seconds of training")
        axes[0, 0].invert_yaxis()
        _explain(figure, names)
    return figure


# What is drawn from records alone, by name.
DRAWINGS: dict[str, Callable[..., Figure]] = {
    "bars": bars,
    "heatmap": heatmap,
    "scatter": scatter,
    "rates": rates,
    "curve": curve,
    "losses": losses,
    "learning": learning,
    "times": times,
    "sensitivity": sensitivity,
}


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write a figure as ``stem.pdf`` and ``stem.png`` (or other ``formats``) and close it."""
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    # dates would make every file another one
    dates: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    # the kind of font is read when a file is written
    _draw_as_text(figure)
    with plt.rc_context(STYLE), warnings.catch_warnings():
        # of letters that no font here has
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for file in files:
            buffer = io.BytesIO()
            looks: Any = {"dpi": 200, "metadata": dates.get(file.suffix)}
            figure.savefig(buffer, format=file.suffix[1:], **looks)
            write_whole(file, buffer.getvalue())
    plt.close(figure)
    return files


def _draw_as_text(figure: Figure) -> None:
    """Write out what no font has: control characters, bytes of paths that are no UTF-8."""
    for text in figure.findobj(Text):
        text.set_text("\n".join(map(one_line, text.get_text().split("\n"))))


# what is black in a picture is light on a dark page, where the viewer asks for one
FOLLOWING = (
    "svg { color: #111; fill: currentColor } "
    "@media (prefers-color-scheme: dark) { svg { color: #e8e8e8 } }"
)


def svg(figure: Figure) -> bytes:
    """A figure as SVG without a background, its letters as paths, which looks alike everywhere, and
    follows the viewer's choice of a dark page; the figure is closed.
    """
    buffer = io.BytesIO()
    _draw_as_text(figure)
    with plt.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue().replace(b"#000000", b"currentColor")
    return text.replace(b"<defs>", f"<defs><style>{FOLLOWING}</style>".encode(), 1)

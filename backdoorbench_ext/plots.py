"""Plots of records: CA, ASR and ARR in several ways, losses, learning curves, times."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
# Told apart by the colour-blind (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/); marks tell
# further ones apart.
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
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
STYLE: Any = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # a path with two dollar signs is no formula
    "text.parse_math": False,
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


def _look(place: int) -> dict[str, Any]:
    """How the points of a defense look."""
    return {
        "marker": MARKS[place % len(MARKS)],
        "color": OKABE_ITO[place % len(OKABE_ITO)],
    }


def _explain(figure: Figure, *names: Mapping[str, str]) -> None:
    """Under a figure, which grows by as much, what the letters in these names mean: it may stand
    without its table.
    """
    lines = textwrap.wrap("; ".join(explained(*names)), int(20 * figure.get_figwidth()))
    if lines:
        figure.set_figheight(figure.get_figheight() + 0.1 * len(lines))
        figure.supxlabel("\n".join(lines), fontsize=6)


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


def bars(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric] = USUAL) -> Figure:
    """Groups of bars, as ``gather.bars`` has them, with whiskers.

    Raises:
        InputError: no records.
    """
    panels = gather.bars(records, suite, metrics)
    across = len(panels[0].groups)
    room = max(1.0 if across < 10 else 0.6, 0.064 * max(panel.longest for panel in panels))
    width = max(3.2, across * room + 0.6)
    columns = max(1, min(3, len(panels), int(14 / width)))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, axes = sheet(rows, columns, (width * columns, 2.5 * rows + 0.3), sharey=True)
        unused(axes, len(panels))
        for ax, panel in zip(axes.flat, panels, strict=False):
            _bars(ax, panel, metrics)
            ax.set_title(wrapped(panel.title, int(14 * width)), fontsize=8)
        for ax in axes[:, 0]:
            ax.set_ylabel("percent")
        patches = [
            Patch(color=colour(m, i), label=f"{WORDS.get(m.key, m.title)} {m.arrow}")
            for i, m in enumerate(metrics)
        ]
        # wider than a narrow picture
        beside = len(metrics) if width * columns > 5 else 1
        figure.legend(handles=patches, loc="outside lower center", ncols=beside, frameon=False)
    return figure


def _bars(ax: Any, panel: gather.Panel, metrics: Sequence[Metric]) -> None:
    step = 0.81 / len(metrics)
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
            ax.annotate(f"{bar.mean:.0f}", place, ha="center", va="bottom", fontsize=6)
    ax.set_xticks(range(len(panel.groups)), [name for name, _ in panel.groups], fontsize=7)
    ax.set_xlim(-0.6, len(panel.groups) - 0.4)
    ax.set_ylim(0, 112)
    ax.set_yticks(range(0, 101, 20))


def heatmap(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric] = USUAL) -> Figure:
    """The whole grid: defenses down, attacks across, a panel a metric, its number in every field;
    grey where no record is. Good is blue in all of them.
    """
    grid = gather.heatmap(records, suite, metrics)
    n = len(metrics)
    size = (1.6 + n * (0.3 + 0.42 * len(grid.columns)), 1.1 + 0.24 * len(grid.rows))
    with plt.rc_context(STYLE):
        figure, axes = sheet(1, n, size, sharey=True)
        for ax, metric in zip(axes.flat, metrics, strict=True):
            _heat(ax, grid.values[metric.key], metric)
            ax.set_xticks(range(len(grid.columns)), grid.columns, fontsize=6, rotation=90)
            ax.set_yticks(range(len(grid.rows)), grid.rows, fontsize=7)
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
                ink = "white" if dark else "black"
                ax.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6, color=ink)


def scatter(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric] = USUAL) -> Figure:
    """ASR against CA, a point a cell, a colour and mark a defense, a panel a data set: good is at
    the lower right.
    """
    _, names = _names(records, suite)
    means = summary(records, USUAL)
    sets = _sets(records, suite)
    size = (3.2 * len(sets) + 1.2, max(2.9, 0.18 * len(names) + 0.3))
    with plt.rc_context(STYLE):
        figure, axes = sheet(1, len(sets), size, sharey=True)
        for ax, dataset in zip(axes.flat, sets, strict=True):
            for place, (defense, name) in enumerate(names.items()):
                own = [n for key, n in means.items() if (key[0], key[3]) == (dataset, defense)]
                ca = [numbers["ca"].mean for numbers in own]
                asr = [numbers["asr"].mean for numbers in own]
                looks: Any = {"ls": "", "ms": 5, "mew": 0, "alpha": 0.85, "label": name}
                ax.plot(ca, asr, **_look(place), **looks)
            ax.set_title(dataset, fontsize=8)
            ax.set_xlabel("CA, percent →")
            low, high = ax.get_xlim()
            # ten points at least: chance must not look like a difference
            middle = (low + high) / 2
            ax.set_xlim(min(low, middle - 5), max(high, middle + 5))
            ax.set_ylim(-4, 104)
        axes[0, 0].set_ylabel("← ASR, percent")
        legend: Any = axes[0, 0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside right center", frameon=False, fontsize=7)
        _explain(figure, names)
    return figure


def rates(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric] = USUAL) -> Figure:
    """Each metric over the poisoning rate, a row an attack (and data set), a line a defense.

    Raises:
        InputError: no records, or of one rate only.
    """
    _, names = _names(records, suite)
    means = summary(records, metrics)
    shares: dict[tuple[str, str], set[float]] = {}
    for dataset, share, attack, _ in means:
        shares.setdefault((dataset, attack), set()).add(share)
    panels = {
        where: {key: n for key, n in means.items() if (key[0], key[2]) == where}
        for where, own in shares.items()
        if len(own) > 1
    }
    if not panels:
        raise InputError(
            f"{suite.name} has records of one poisoning rate only: nothing to draw over it"
        )
    return _by_metric(panels, metrics, names, _over_rates, "poisoning rate, percent")


def _by_metric(
    panels: Mapping[tuple[str, str], Any],
    metrics: Sequence[Metric],
    names: Mapping[str, str],
    draw: Callable[..., None],
    across: str,
) -> Figure:
    """A row a data set and attack, a column a metric; ``draw`` fills each from the row's own."""
    size = (2.4 * len(metrics), 1.7 * len(panels) + 0.5)
    with plt.rc_context(STYLE):
        figure, axes = sheet(len(panels), len(metrics), size, sharex=True, sharey=True)
        for row, ((dataset, attack), own) in zip(axes, panels.items(), strict=True):
            for ax, metric in zip(row, metrics, strict=True):
                draw(ax, own, names, metric)
                title = wrapped(f"{metric.title}   {attack}, {dataset}", 36)
                ax.set_title(title, fontsize=7)
            row[0].set_ylabel("percent")
        for ax in axes[-1]:
            ax.set_xlabel(across)
        legend: Any = axes[0, 0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper center", ncols=4, frameon=False, fontsize=7)
        _explain(figure, names)
    return figure


def _over_rates(
    ax: Any, means: Mapping[Key, Any], names: Mapping[str, str], metric: Metric
) -> None:
    """A line a defense, over the rates of an attack."""
    for place, (defense, name) in enumerate(names.items()):
        own = sorted((key[1], n[metric.key].mean) for key, n in means.items() if key[3] == defense)
        looks: Any = {"ls": "-", "ms": 3.5, "lw": 1, "label": name}
        shares = [100 * share for share, _ in own]
        ax.plot(shares, [value for _, value in own], **_look(place), **looks)
    ax.set_ylim(-4, 104)


# a probe that is a point of a curve between two networks
POINT = re.compile(r"t = ([0-9.]+)")


def curve(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric] = USUAL) -> Figure:
    """Each metric along the curve of MCR, a panel a data set and attack, a line a defense and seed;
    a dot where its model was taken.

    Raises:
        InputError: no record has points of a curve.
    """
    attacks, names = _names(records, suite)
    panels: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if any(map(POINT.fullmatch, record["probes"])):
            where = (record["cell"]["dataset"], attacks[record["cell"]["attack"]])
            panels.setdefault(where, []).append(record)
    if not panels:
        raise InputError(f"{suite.name} has no records with points of a curve, as MCR's have them")
    drawn = {record["cell"]["defense"] for own in panels.values() for record in own}
    names = {defense: name for defense, name in names.items() if defense in drawn}
    return _by_metric(panels, metrics, names, _along, "place on the curve, t")


def _along(ax: Any, records: Sequence[Record], names: Mapping[str, str], metric: Metric) -> None:
    """A line a record, over the points of its curve."""
    places = list(names)
    seen = set()
    for record in records:
        defense = record["cell"]["defense"]
        found = {POINT.fullmatch(name): hits for name, hits in record["probes"].items()}
        values = {
            float(at[1]): metric.of({"metrics": hits}, None) for at, hits in found.items() if at
        }
        points = sorted((t, value) for t, value in values.items() if value is not None)
        look = _look(places.index(defense))
        label = names[defense] if defense not in seen else None
        seen.add(defense)
        ats = [t for t, _ in points]
        ax.plot(ats, [value for _, value in points], **look, ls="-", ms=2, lw=1, label=label)
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
    audited: bool = False,
) -> Figure:
    """The training losses over the epochs, a panel a cell of the first seed, its stages one after
    the other; ``audited``: of the cells that tell clean from poisoned alone.

    Raises:
        InputError: as ``gather.losses``.
    """
    shown = gather.losses(records, suite, audited)
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    with plt.rc_context(STYLE):
        figure, axes = sheet(down, across, (max(4.2, 2.3 * across), 1.8 * down + 0.4))
        unused(axes, len(shown))
        lines: dict[str, Any] = {}
        for ax, training in zip(axes.flat, shown, strict=False):
            _losses(ax, training, lines)
        words: Any = {"loc": "outside upper center", "ncols": 3, "frameon": False, "fontsize": 7}
        figure.legend(lines.values(), lines, **words)
        for ax in axes.flat[max(0, len(shown) - across) : len(shown)]:
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
        ax.annotate(name, at, (0, 1 + 6 * row), fontsize=5.5, color="#555555", **place)
    ax.set_title(wrapped(training.title, 42), fontsize=7, pad=4 + 6 * rows)


def learning(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric] = USUAL) -> Figure:
    """CA and ASR of test images over the seconds of a training, as ``--audit`` logs them, a row an
    attack (and data set and rate), a colour a defense of the first seed, a line a stage of it.

    Raises:
        InputError: as ``gather.learning``.
    """
    shown = gather.learning(records, suite)
    attacks, names = _names(records, suite)
    drawn = {line.defense for lines in shown.values() for line in lines}
    defenses = {d: name for d, name in names.items() if d in drawn}
    height = 1.7 * len(shown) + 0.3 + 0.17 * -(-len(defenses) // 3)
    with plt.rc_context(STYLE):
        figure, axes = sheet(len(shown), 2, (6.4, height), sharey=True, sharex="row")
        lines: dict[str, Any] = {}
        for row, ((attack, dataset, share), own) in zip(axes, shown.items(), strict=True):
            where = f"{attacks[attack]}, {dataset}, {rate(share)}"
            lines |= _learning(row, own, defenses, where)
        for ax in axes[-1]:
            ax.set_xlabel("seconds of training")
        words: Any = {"loc": "outside upper center", "ncols": 3, "frameon": False, "fontsize": 7}
        figure.legend(lines.values(), lines, **words)
        _explain(figure, defenses, {attack: attacks[attack] for attack, _, _ in shown})
    return figure


def _learning(
    row: Any, own: Sequence[gather.Line], defenses: Mapping[str, str], where: str
) -> dict[str, Any]:
    """A row of learning curves; one line of each defense, by its title."""
    drawn = {}
    for line in own:
        look = _look(list(defenses).index(line.defense)) | {"ls": "-", "lw": 1, "ms": 2}
        for ax, values in zip(row, (line.ca, line.asr), strict=True):
            drawn[defenses[line.defense]] = ax.plot(line.seconds, values, **look)[0]
    for ax, metric in zip(row, ("CA", "ASR"), strict=True):
        ax.set_title(f"{metric}   {where}", fontsize=7)
        ax.set_ylim(-4, 104)
        ax.grid(lw=0.3)
    row[0].set_ylabel("percent")
    return drawn


def times(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric] = USUAL) -> Figure:
    """Seconds of training by defense, a panel a data set: the mean over attacks and seeds, a dot a
    run. A repair counts its victim's, too.
    """
    _, names = _names(records, suite)
    data = frame(records, ())
    sets = _sets(records, suite)
    with plt.rc_context(STYLE):
        size = (3.2 * len(sets) + 0.8, 0.6 + 0.22 * len(names))
        figure, axes = sheet(1, len(sets), size, sharey=True)
        for ax, dataset in zip(axes.flat, sets, strict=True):
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


def svg(figure: Figure) -> bytes:
    """A figure as SVG, its letters as paths, which looks alike everywhere; the figure is closed."""
    buffer = io.BytesIO()
    _draw_as_text(figure)
    with plt.rc_context({"svg.hashsalt": "bbx"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()

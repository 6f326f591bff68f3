"""Pictures, pure functions of records or images: CA, ASR and ARR in several ways, losses, and what
the triggers look like.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from safetensors.torch import load
from torch import Tensor

from .errors import InputError
from .frequency import dct2
from .images import Images
from .records import METRICS, Record
from .suite import Suite
from .tables import ARROWS, frame, heads, labels, letters, present, title

# also told apart in grey and by the colour-blind
COLOURS = {"ca": "#3b6fb6", "asr": "#c8443c", "arr": "#7aa95c"}
STYLE: Any = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _sets(data: Any, suite: Suite) -> list[str]:
    """The suite's data sets that have rows."""
    return [d for d in suite.datasets if (data["dataset"] == d).any()]


def bars(records: Sequence[Record], suite: Suite) -> Figure:
    """A panel an attack (and data set and rate), a group of bars a defense; with one defense alone,
    a panel a data set and a group an attack.

    Whiskers are the 95 % interval of one run or the range over seeds.

    Raises:
        InputError: no records.
    """
    if not records:
        raise InputError(f"no records of {suite.name} yet: bbx run {suite.name}")
    data = frame(records)
    defenses = [d for d in suite.defenses if (data["defense"] == d).any()]
    rows = list(data[["attack", "rate"]].drop_duplicates().itertuples(index=False, name=None))
    rows.sort(key=lambda row: (suite.attacks.index(row[0]), row[1]))
    # a title, and what its groups are called and show
    panels: list[tuple[str, list[tuple[str, Any]]]] = []
    for dataset in _sets(data, suite):
        there = data[data["dataset"] == dataset]
        if len(defenses) == 1 and len(rows) > 1:
            groups = [
                (
                    _lines(a) + (f"\n{100 * r:g} %" if a in suite.own_rates else ""),
                    there[(there["attack"] == a) & (there["rate"] == r)],
                )
                for a, r in rows
            ]
            share = (
                f"{', '.join(f'{100 * r:g} %' for r in suite.rates)} poisoned"
                + " unless said" * bool(suite.own_rates)
            )
            panels.append((f"{title(defenses[0])}   {dataset}, {share}", groups))
            continue
        for attack, rate in rows:
            part = there[(there["attack"] == attack) & (there["rate"] == rate)]
            if not part.empty:
                groups = [
                    (_lines(title(d).replace(" [", "[")), part[part["defense"] == d])
                    for d in defenses
                ]
                share = "not poisoned" if attack == "none" else f"{100 * rate:g} % poisoned"
                panels.append((f"{attack}   {dataset}, {share}", groups))
    longest = max(
        len(line) for _, groups in panels for label, _ in groups for line in label.split("\n")
    )
    across = len(panels[0][1])
    width = max(3.2, across * max(1.0 if across < 10 else 0.6, 0.064 * longest) + 0.6)
    columns = max(1, min(3, len(panels), int(14 / width)))
    with plt.rc_context(STYLE):
        size = (width * columns, 2.5 * -(-len(panels) // columns) + 0.3)
        figure, axes = plt.subplots(
            -(-len(panels) // columns),
            columns,
            figsize=size,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, (name, groups) in zip(axes.flat, panels, strict=False):
            for i, metric in enumerate(METRICS):
                for x, (_, own) in enumerate(groups):
                    if own.empty:
                        continue
                    mean = own[metric].mean()
                    several = len(own) > 1
                    low, high = (
                        (own[metric].min(), own[metric].max())
                        if several
                        else (own[f"{metric}_low"].mean(), own[f"{metric}_high"].mean())
                    )
                    ax.bar(x + 0.27 * (i - 1), mean, 0.25, color=COLOURS[metric])
                    ax.errorbar(
                        x + 0.27 * (i - 1),
                        mean,
                        [[max(0, mean - low)], [max(0, high - mean)]],
                        color="black",
                        lw=0.7,
                        capsize=1.5,
                    )
                    ax.annotate(
                        f"{mean:.0f}",
                        (x + 0.27 * (i - 1), high + 1),
                        ha="center",
                        va="bottom",
                        fontsize=6,
                    )
            ax.set_xticks(range(len(groups)), [label for label, _ in groups], fontsize=7)
            ax.set_xlim(-0.6, len(groups) - 0.4)
            ax.set_title(_wrapped(name, int(14 * width)), fontsize=8)
            ax.set_ylim(0, 112)
            ax.set_yticks(range(0, 101, 20))
        for ax in axes[:, 0]:
            ax.set_ylabel("percent")
        words = {
            "ca": "CA, clean accuracy ↑",
            "asr": "ASR, attack success ↓",
            "arr": "ARR, recovered ↑",
        }
        patches = [Patch(color=COLOURS[metric], label=words[metric]) for metric in METRICS]
        # wider than a narrow picture
        figure.legend(
            handles=patches,
            loc="outside lower center",
            ncols=3 if size[0] > 5 else 1,
            frameon=False,
        )
    return figure


OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999")
"""Told apart by the colour-blind (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/); marks tell
further ones apart.
"""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def _means(records: Sequence[Record], suite: Suite) -> tuple[Any, dict[str, str]]:
    """A row a data set, attack, rate and defense with means over seeds; and the defenses there with
    the short names of the tables.

    Raises:
        InputError: no records.
    """
    if not records:
        raise InputError(f"no records of {suite.name} yet: bbx run {suite.name}")
    means = (
        frame(records)
        .groupby(["dataset", "attack", "rate", "defense"], sort=False)[list(METRICS)]
        .mean()
        .reset_index()
    )
    return means, heads([d for d in suite.defenses if (means["defense"] == d).any()])


def _explain(figure: Figure, *names: Mapping[str, str]) -> None:
    """Under a figure, which grows by as much, what the letters in these names mean: it may stand
    without its table.
    """
    lines = textwrap.wrap("; ".join(letters(*names)), int(20 * figure.get_figwidth()))
    if lines:
        figure.set_figheight(figure.get_figheight() + 0.1 * len(lines))
        figure.supxlabel("\n".join(lines), fontsize=6)


def heatmap(records: Sequence[Record], suite: Suite) -> Figure:
    """The whole grid: defenses down, attacks across, a panel a metric, its number in every field;
    grey where no record is. Good is blue in all three.
    """
    means, names = _means(records, suite)
    there = set(means[["dataset", "attack", "rate"]].itertuples(index=False, name=None))
    columns = sorted(
        there,
        key=lambda column: (
            suite.datasets.index(column[0]),
            suite.attacks.index(column[1]),
            column[2],
        ),
    )
    several = {kind: len({c[i] for c in columns}) > 1 for i, kind in ((0, "dataset"), (2, "rate"))}
    short = labels(*present(records, suite))
    across = [
        "\n".join(
            [
                *([d] if several["dataset"] else []),
                short[a],
                *([f"{100 * r:g} %"] if several["rate"] else []),
            ]
        )
        for d, a, r in columns
    ]
    found = means.set_index(["dataset", "attack", "rate", "defense"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            3,
            figsize=(1.6 + 3 * (0.3 + 0.42 * len(columns)), 1.1 + 0.24 * len(names)),
            sharey=True,
            layout="constrained",
        )
        for ax, metric in zip(axes, METRICS, strict=True):
            values = [
                [
                    float(found.loc[(*c, d), metric]) if (*c, d) in found.index else float("nan")
                    for c in columns
                ]
                for d in names
            ]
            palette = plt.get_cmap("RdYlBu_r" if metric == "asr" else "RdYlBu").with_extremes(
                bad="#dddddd"
            )
            ax.imshow(values, vmin=0, vmax=100, cmap=palette, aspect="auto")
            for y, row in enumerate(values):
                for x, value in enumerate(row):
                    good = 100 - value if metric == "asr" else value
                    if value == value:
                        ax.text(
                            x,
                            y,
                            f"{value:.0f}",
                            ha="center",
                            va="center",
                            fontsize=6,
                            color="white" if good < 12 or good > 88 else "black",
                        )
            ax.set_xticks(range(len(columns)), across, fontsize=6, rotation=90)
            ax.set_yticks(range(len(names)), list(names.values()), fontsize=7)
            ax.tick_params(length=0)
            ax.set_title(
                f"{ARROWS[metric][0]} {'↑' if ARROWS[metric][1] == 'up' else '↓'}", fontsize=8
            )
        _explain(figure, names, short)
    return figure


def scatter(records: Sequence[Record], suite: Suite) -> Figure:
    """ASR against CA, a point a cell, a colour and mark a defense, a panel a data set: good is at
    the lower right.
    """
    means, names = _means(records, suite)
    with plt.rc_context(STYLE):
        sets = _sets(means, suite)
        size = (3.2 * len(sets) + 1.2, max(2.9, 0.18 * len(names) + 0.3))
        figure, axes = plt.subplots(
            1, len(sets), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for ax, dataset in zip(axes.flat, sets, strict=True):
            for i, (defense, name) in enumerate(names.items()):
                own = means[(means["dataset"] == dataset) & (means["defense"] == defense)]
                ax.plot(
                    own["ca"],
                    own["asr"],
                    MARKS[i % len(MARKS)],
                    color=OKABE_ITO[i % len(OKABE_ITO)],
                    ms=5,
                    mew=0,
                    alpha=0.85,
                    label=name,
                )
            ax.set_title(dataset, fontsize=8)
            ax.set_xlabel("CA, percent →")
            low, high = ax.get_xlim()
            # ten points at least: chance must not look like a difference
            ax.set_xlim(min(low, (low + high) / 2 - 5), max(high, (low + high) / 2 + 5))
            ax.set_ylim(-4, 104)
        axes[0, 0].set_ylabel("← ASR, percent")
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside right center",
            frameon=False,
            fontsize=7,
        )
        _explain(figure, names)
    return figure


def rates(records: Sequence[Record], suite: Suite) -> Figure:
    """CA, ASR and ARR over the poisoning rate, a panel an attack (and data set) and metric, a line
    a defense.

    Raises:
        InputError: no records, or of one rate only.
    """
    means, names = _means(records, suite)
    panels = [
        key
        for key, own in means.groupby(["dataset", "attack"], sort=False)
        if own["rate"].nunique() > 1
    ]
    if not panels:
        raise InputError(
            f"{suite.name} has records of one poisoning rate only: nothing to draw over it"
        )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels),
            3,
            figsize=(7.2, 1.7 * len(panels) + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for row, (dataset, attack) in zip(axes, panels, strict=True):
            for ax, metric in zip(row, METRICS, strict=True):
                for i, (defense, name) in enumerate(names.items()):
                    own = means[
                        (means["dataset"] == dataset)
                        & (means["attack"] == attack)
                        & (means["defense"] == defense)
                    ].sort_values("rate")
                    ax.plot(
                        100 * own["rate"],
                        own[metric],
                        MARKS[i % len(MARKS)] + "-",
                        color=OKABE_ITO[i % len(OKABE_ITO)],
                        ms=3.5,
                        lw=1,
                        label=name,
                    )
                ax.set_title(f"{ARROWS[metric][0]}   {attack}, {dataset}", fontsize=7)
                ax.set_ylim(-4, 104)
            row[0].set_ylabel("percent")
        for ax in axes[-1]:
            ax.set_xlabel("poisoning rate, percent")
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=4,
            frameon=False,
            fontsize=7,
        )
        _explain(figure, names)
    return figure


def losses(records: Sequence[Record], suite: Suite, audited: bool = False) -> Figure:
    """The training losses over the epochs, a panel a cell of the first seed, its stages one after
    the other; ``audited``: of the cells that tell clean from poisoned alone.

    Raises:
        InputError: no records, or none with a loss, such as a victim that was made elsewhere.
    """
    _, names = _means(records, suite)
    first = min(r["spec"]["seed"] for r in records)
    told = " clean loss" if audited else " loss"
    shown = [
        r
        for r in records
        if r["spec"]["seed"] == first and any(name.endswith(told) for name in r["curves"])
    ]
    if not shown:
        raise InputError(
            f"the records of {suite.name} hold no losses"
            + " of clean and of poisoned images" * audited
        )
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    short = labels(*present(records, suite))
    sets = {r["cell"]["dataset"] for r in shown}
    rates = {r["spec"]["rate"] for r in shown}
    kinds = {
        ", clean": ("clean images", COLOURS["ca"]),
        ", poisoned": ("poisoned images", COLOURS["asr"]),
        "": ("training loss", "#999999"),
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(max(4.2, 2.3 * across), 1.8 * down + 0.4),
            squeeze=False,
            layout="constrained",
        )
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        lines = {}
        for ax, record in zip(axes.flat, shown, strict=False):
            parts: dict[str, list[float]] = {}
            for name, values in record["curves"].items():
                # rounds are one stage
                if name.endswith(" loss"):
                    parts.setdefault(
                        re.sub(r", round \d+", "", name.removesuffix(" loss")), []
                    ).extend(values)
            stages = [name for name in parts if not name.endswith((", clean", ", poisoned"))]
            whole = sum(len(parts[stage]) for stage in stages)
            start = 0
            taken = [0.0]
            for stage in stages:
                for kind, (word, colour) in kinds.items():
                    if values := parts.get(stage + kind):
                        lines[word] = ax.plot(
                            range(start + 1, start + len(values) + 1),
                            values,
                            "o-",
                            color=colour,
                            lw=1,
                            ms=1.5,
                        )[0]
                end = start + len(parts[stage])
                # of its name, about
                wide = 0.027 * whole * len(stage)
                # above it, inward at the edges, a line higher where the name before it ends too
                # late
                if len(stages) > 1:
                    left = min(max(0, (start + end - wide) / 2), whole - wide)
                    row = next((i for i, until in enumerate(taken) if left >= until), len(taken))
                    taken[row : row + 1] = [left + wide]
                    places: Any = {
                        "xycoords": ax.get_xaxis_transform(),
                        "textcoords": "offset points",
                    }
                    ax.annotate(
                        stage,
                        (left + 0.5, 1),
                        (0, 1 + 6 * row),
                        **places,
                        fontsize=5.5,
                        color="#555555",
                    )
                    if start:
                        ax.axvline(start + 0.5, color="#555555", lw=0.6, ls=":")
                start = end
            more = [record["cell"]["dataset"]] * (len(sets) > 1) + [
                f"{100 * record['spec']['rate']:g} %"
            ] * (len(rates) > 1)
            name = "   ".join(
                [names[record["cell"]["defense"]], short[record["cell"]["attack"]], *more]
            )
            ax.set_title(_wrapped(name, 42), fontsize=7, pad=4 + 6 * len(taken) * (len(stages) > 1))
        figure.legend(
            lines.values(), lines, loc="outside upper center", ncols=3, frameon=False, fontsize=7
        )
        for ax in axes.flat[max(0, len(shown) - across) : len(shown)]:
            ax.set_xlabel("epoch")
        figure.supylabel("loss", fontsize=8)
        _explain(figure, names, short)
    return figure


def learning(records: Sequence[Record], suite: Suite) -> Figure:
    """CA and ASR of test images over the seconds of a training, as ``--audit`` logs them, a row an
    attack (and data set and rate), a colour a defense of the first seed, a line a stage of it; a
    stage that several share (a victim; MCCI's training, looked at as AVG answers) is drawn once, as
    the first one's.

    Raises:
        InputError: no records, or none with these curves.
    """
    _, names = _means(records, suite)
    short = labels(*present(records, suite))
    first = min(r["spec"]["seed"] for r in records)
    looked = [
        r
        for r in records
        if r["spec"]["seed"] == first and any(name.endswith(", CA") for name in r["curves"])
    ]

    def place(record: Record) -> tuple[str, str, float]:
        return record["cell"]["attack"], record["cell"]["dataset"], record["spec"]["rate"]

    # curves: whose, when they start, how long
    shown: dict[tuple[str, str, float], dict[Any, tuple[str, float, float]]] = {
        place(r): {} for r in looked
    }
    for record in sorted(looked, key=lambda r: suite.defenses.index(r["cell"]["defense"])):
        start = 0.0
        for stage, seconds in record["time"]["stages"].items():
            curves = tuple(
                tuple(record["curves"].get(f"{stage}, {metric}", ())) for metric in ("CA", "ASR")
            )
            if curves[0]:
                shown[place(record)].setdefault(
                    (stage, curves), (record["cell"]["defense"], start, seconds)
                )
            start += seconds
    if not shown:
        raise InputError(
            f"the records of {suite.name} hold no CA by epoch: bbx run {suite.name} --audit logs "
            "it, of cells that have no record yet"
        )
    defenses = [
        d for d in names if any(d == whose for row in shown.values() for whose, *_ in row.values())
    ]
    with plt.rc_context(STYLE):
        size = (6.4, 1.7 * len(shown) + 0.3 + 0.17 * -(-len(defenses) // 3))
        figure, axes = plt.subplots(
            len(shown),
            2,
            figsize=size,
            sharey=True,
            sharex="row",
            squeeze=False,
            layout="constrained",
        )
        lines = {}
        for row, drawn in zip(axes, shown.values(), strict=True):
            for (_, curves), (defense, start, seconds) in drawn.items():
                i = defenses.index(defense)
                for ax, values in zip(row, curves, strict=True):
                    when = [
                        start + seconds * (epoch + 1) / len(values) for epoch in range(len(values))
                    ]
                    lines[names[defense]] = ax.plot(
                        when,
                        values,
                        MARKS[i % len(MARKS)] + "-",
                        color=OKABE_ITO[i % len(OKABE_ITO)],
                        lw=1,
                        ms=2,
                    )[0]
        for row, (attack, dataset, rate) in zip(axes, shown, strict=True):
            for ax, metric in zip(row, ("ca", "asr"), strict=True):
                ax.set_title(
                    f"{ARROWS[metric][0]}   {short[attack]}, {dataset}, {100 * rate:g} %",
                    fontsize=7,
                )
                ax.set_ylim(-4, 104)
                ax.grid(lw=0.3)
            row[0].set_ylabel("percent")
        for ax in axes[-1]:
            ax.set_xlabel("seconds of training")
        figure.legend(
            lines.values(), lines, loc="outside upper center", ncols=3, frameon=False, fontsize=7
        )
        _explain(
            figure, {d: names[d] for d in defenses}, {attack: short[attack] for attack, *_ in shown}
        )
    return figure


def times(records: Sequence[Record], suite: Suite) -> Figure:
    """Seconds of training by defense, a panel a data set: the mean over attacks and seeds, a dot a
    run. A repair counts its victim's, too.
    """
    _, names = _means(records, suite)
    data = frame(records)
    sets = _sets(data, suite)
    with plt.rc_context(STYLE):
        size = (3.2 * len(sets) + 0.8, 0.6 + 0.22 * len(names))
        figure, axes = plt.subplots(
            1, len(sets), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for ax, dataset in zip(axes.flat, sets, strict=True):
            for y, defense in enumerate(names):
                own = data[(data["dataset"] == dataset) & (data["defense"] == defense)][
                    "training_seconds"
                ]
                ax.barh(y, own.mean(), 0.7, color=COLOURS["ca"])
                ax.plot(own, [y] * len(own), ".", color="black", ms=3, alpha=0.6)
            ax.set_yticks(range(len(names)), list(names.values()))
            ax.set_title(dataset, fontsize=8)
            ax.set_xlabel("seconds of training")
        axes[0, 0].invert_yaxis()
        _explain(figure, names)
    return figure


DRAWINGS = {
    "bars": bars,
    "heatmap": heatmap,
    "scatter": scatter,
    "rates": rates,
    "losses": losses,
    "learning": learning,
    "times": times,
}
"""What is drawn from records alone, by name."""


def _wrapped(name: str, letters: int) -> str:
    """A title in as many lines as it needs, broken between its parts, then at spaces and after
    commas.
    """
    if len(name) <= letters:
        return name
    return "\n".join(
        line
        for part in name.split("   ")
        for line in textwrap.wrap(re.sub(r",(?=\S)", ", ", part), letters)
    )


def _lines(name: str) -> str:
    """A method's name with an option a line."""
    return name.replace("[", "\n").rstrip("]").replace(",", "\n")


def examples(clean: Tensor, triggered: Tensor, attack: str) -> Figure:
    """What a trigger looks like: uint8 images (n, 3, h, w) clean, triggered, and the difference
    stretched to the full range.
    """
    before = clean.float() / 255
    after = triggered.float() / 255
    difference = (after - before).abs()
    peak = float(difference.max())
    rows = [
        ("clean", before),
        ("triggered", after),
        (f"difference x{1 / peak:.1f}" if peak else "difference: none", difference / (peak or 1)),
    ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows), 1, figsize=(1 + 0.8 * len(clean), 2.7), layout="constrained"
        )
        for ax, (label, images) in zip(axes, rows, strict=True):
            ax.imshow(images.permute(2, 0, 3, 1).flatten(1, 2).numpy(), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_ylabel(label, rotation=0, ha="right", va="center")
        axes[0].set_title(attack, fontsize=8)
    return figure


def gallery(attacks: Sequence[tuple[str, Images, Images]], across: int = 7) -> Figure:
    """What each attack does: an image before and after, ten times the difference, and how the mean
    log spectrum changes.

    Args:
        attacks: name, images before and after; the picture shows one, the spectrum (log10 of 1 +
            |DCT| of 0-255 pixels, mean over images and channels, low frequencies upper left) all of
            them.
        across: attacks beside each other.
    """
    across = min(across, len(attacks))
    blocks = -(-len(attacks) // across)
    rows = ("clean", "poisoned", "difference x10", "log DCT, clean", "log DCT, poisoned")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows) * blocks,
            across,
            figsize=(1.05 * across + 0.9, 1.1 * len(rows) * blocks),
            squeeze=False,
            layout="constrained",
        )
        for ax in axes.flat:
            ax.set_axis_off()
        for k, (name, before, after) in enumerate(attacks):
            column = k % across
            top = len(rows) * (k // across)
            shown = _clearest(before.x)
            a = before.x[shown].float() / 255
            b = after.x[shown].float() / 255
            spectra = [
                torch.log10(1 + dct2(images.x.float()).abs()).mean((0, 1))
                for images in (before, after)
            ]
            for i, image in enumerate((a, b, (10 * (b - a).abs()).clamp(0, 1))):
                axes[top + i, column].imshow(
                    image.permute(1, 2, 0).numpy(), interpolation="nearest"
                )
            for i, spectrum in enumerate(spectra):
                axes[top + 3 + i, column].imshow(
                    spectrum.numpy(), vmin=0, vmax=3, cmap="viridis", interpolation="nearest"
                )
            axes[top, column].set_title(_lines(name), fontsize=7)
            for i, label in enumerate(rows if column == 0 else ()):
                axes[top + i, 0].text(
                    -0.12,
                    0.5,
                    label,
                    transform=axes[top + i, 0].transAxes,
                    ha="right",
                    va="center",
                    fontsize=7,
                )
    return figure


Panel = tuple[str, Tensor, Tensor, Tensor, Tensor]


def panels(suite: Suite, folder: Path, only: str = "") -> list[Panel]:
    """The embeddings that ``--audit`` kept in a suite's folder, for ``tsne``.

    Raises:
        InputError: none was kept.
    """
    found: list[Panel] = []
    for cell in suite.cells(only):
        file = (folder / cell.path()).with_suffix(".embeddings")
        kept = load(file.read_bytes()) if file.exists() else {}
        for name in sorted(
            key.removesuffix("/clean")
            for key in kept
            if key.endswith("/clean") and key != "true/clean"
        ):
            words = "\n".join(
                (title(cell.defense), *filter(None, (name,)), f"{cell.attack}, {cell.dataset}")
            )
            found.append(
                (
                    words,
                    kept[f"{name}/clean"],
                    kept["true/clean"],
                    kept[f"{name}/triggered"],
                    kept["true/triggered"],
                )
            )
    if not found:
        raise InputError(
            f"{folder} holds no embeddings: bbx run {suite.name} --audit keeps them, of cells that "
            "have no record yet"
        )
    return found


def tsne(panels: Sequence[Panel]) -> Figure:
    """Where networks put images, by t-SNE (van der Maaten and Hinton 2008,
    https://www.jmlr.org/papers/v9/vandermaaten08a.html).

    Args:
        panels: title, embeddings of clean images (n, d), their classes (n,), embeddings of
            triggered images (m, d), their true classes (m,). All have the colour of their class,
            triggered ones a black edge: in a cluster of their own where the network knows the
            trigger, among the clean ones of their class where it does not.
    """
    # here: it would be a fifth of the start of every command and worker
    from sklearn.manifold import TSNE

    across = min(4, len(panels))
    with plt.rc_context(STYLE):
        size = (2.2 * across, 2.4 * -(-len(panels) // across) + 0.2)
        figure, axes = plt.subplots(
            -(-len(panels) // across), across, figsize=size, squeeze=False, layout="constrained"
        )
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, (name, clean, classes, triggered, true) in zip(axes.flat, panels, strict=False):
            both = torch.cat((clean, triggered)).numpy()
            places = TSNE(
                init="pca", perplexity=min(30, (len(both) - 1) / 3), random_state=0
            ).fit_transform(both)
            here = places[: len(clean)]
            there = places[len(clean) :]
            last = int(torch.cat((classes, true)).max())
            colours: Any = {
                "cmap": "tab10" if last < 10 else "tab20" if last < 20 else "turbo",
                "vmin": 0,
                "vmax": last,
            }
            ax.scatter(here[:, 0], here[:, 1], s=3, c=classes.numpy(), linewidths=0, **colours)
            ax.scatter(
                there[:, 0],
                there[:, 1],
                s=6,
                c=true.numpy(),
                edgecolors="black",
                linewidths=0.4,
                **colours,
            )
            ax.set_title("\n".join(_wrapped(line, 32) for line in name.split("\n")), fontsize=7)
        words = "test images by t-SNE; colour: class, black edge: with the trigger"
        figure.supxlabel("\n".join(textwrap.wrap(words, 22 * across + 6)), fontsize=7)
    return figure


def _clearest(x: Tensor) -> int:
    """The image with the middle contrast: neither flat nor busy."""
    return int(x.float().std((1, 2, 3)).argsort()[len(x) // 2])


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write a figure as ``stem.pdf`` and ``stem.png`` (or other ``formats``) and close it."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    # the kind of font is read when a file is written
    with plt.rc_context(STYLE):
        for file in files:
            figure.savefig(
                file,
                dpi=200,
                metadata={"Date": None}
                if file.suffix == ".svg"
                else {"CreationDate": None}
                if file.suffix == ".pdf"
                else None,
            )
    plt.close(figure)
    return files


def svg(figure: Figure) -> bytes:
    """A figure as SVG, its letters as paths, which looks alike everywhere; the figure is closed."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "bbx"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()

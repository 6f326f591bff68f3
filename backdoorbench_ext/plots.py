"""Pictures, pure functions of records or images: bars of CA, ASR and ARR, and what the triggers look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from .api import Images, InputError
from .frequency import dct2
from .records import METRICS, Record
from .suite import Suite
from .tables import frame, title

COLOURS = {"ca": "#3b6fb6", "asr": "#c8443c", "arr": "#7aa95c"}  # also told apart in grey and by the colour-blind
STYLE: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def bars(records: Sequence[Record], suite: Suite) -> Figure:
    """A panel an attack (and data set and rate), a group of bars a defense; with one defense alone, a panel a data set and a group an attack.

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
    panels: list[tuple[str, list[tuple[str, Any]]]] = []  # a title, and what its groups are called and show
    for dataset in suite.datasets:
        there = data[data["dataset"] == dataset]
        if len(defenses) == 1 and len(rows) > 1:
            groups = [(_lines(a) + (f"\n{100 * r:g} %" if a in suite.own_rates else ""), there[(there["attack"] == a) & (there["rate"] == r)]) for a, r in rows]
            panels.append((f"{title(defenses[0])}   {dataset}, {', '.join(f'{100 * r:g} %' for r in suite.rates)} poisoned unless said", groups))
            continue
        for attack, rate in rows:
            part = there[(there["attack"] == attack) & (there["rate"] == rate)]
            if not part.empty:
                groups = [(_lines(title(d).replace(" [", "[")), part[part["defense"] == d]) for d in defenses]
                panels.append((f"{attack}   {dataset}, {100 * rate:g} % poisoned", groups))
    longest = max(len(line) for _, groups in panels for label, _ in groups for line in label.split("\n"))
    across = len(panels[0][1])
    width = max(3.2, across * max(1.0 if across < 10 else 0.6, 0.064 * longest) + 0.6)
    columns = max(1, min(3, len(panels), int(14 / width)))
    with plt.rc_context(STYLE):
        size = (width * columns, 2.5 * -(-len(panels) // columns) + 0.3)
        figure, axes = plt.subplots(-(-len(panels) // columns), columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, (name, groups) in zip(axes.flat, panels, strict=False):
            for i, metric in enumerate(METRICS):
                for x, (_, own) in enumerate(groups):
                    if own.empty:
                        continue
                    mean, several = own[metric].mean(), len(own) > 1
                    low, high = (own[metric].min(), own[metric].max()) if several else (own[f"{metric}_low"].mean(), own[f"{metric}_high"].mean())
                    ax.bar(x + 0.27 * (i - 1), mean, 0.25, color=COLOURS[metric])
                    ax.errorbar(x + 0.27 * (i - 1), mean, [[max(0, mean - low)], [max(0, high - mean)]], color="black", lw=0.7, capsize=1.5)
                    ax.annotate(f"{mean:.0f}", (x + 0.27 * (i - 1), high + 1), ha="center", va="bottom", fontsize=6)
            ax.set_xticks(range(len(groups)), [label for label, _ in groups], fontsize=7)
            ax.set_xlim(-0.6, len(groups) - 0.4)
            ax.set_title(name, fontsize=8)
            ax.set_ylim(0, 112)
            ax.set_yticks(range(0, 101, 20))
        for ax in axes[:, 0]:
            ax.set_ylabel("percent")
        words = {"ca": "CA, clean accuracy ↑", "asr": "ASR, attack success ↓", "arr": "ARR, recovered ↑"}
        patches = [Patch(color=COLOURS[metric], label=words[metric]) for metric in METRICS]
        figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _lines(name: str) -> str:
    """A method's name with an option a line."""
    return name.replace("[", "\n").rstrip("]").replace(",", "\n")


def examples(clean: Tensor, triggered: Tensor, attack: str) -> Figure:
    """What a trigger looks like: uint8 images (n, 3, h, w) clean, triggered, and the difference stretched to the full range."""
    before, after = clean.float() / 255, triggered.float() / 255
    difference = (after - before).abs()
    peak = float(difference.max())
    rows = [("clean", before), ("triggered", after), (f"difference x{1 / peak:.1f}" if peak else "difference: none", difference / (peak or 1))]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), 1, figsize=(1 + 0.8 * len(clean), 2.7), layout="constrained")
        for ax, (label, images) in zip(axes, rows, strict=True):
            ax.imshow(images.permute(2, 0, 3, 1).flatten(1, 2).numpy(), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_ylabel(label, rotation=0, ha="right", va="center")
        axes[0].set_title(attack, fontsize=8)
    return figure


def gallery(attacks: Sequence[tuple[str, Images, Images]], across: int = 7) -> Figure:
    """What each attack does: an image before and after, ten times the difference, and how the mean log spectrum changes.

    Args:
        attacks: name, images before and after; the picture shows one, the spectrum (log10 of 1 + |DCT| of 0-255 pixels, mean over
            images and channels, low frequencies upper left) all of them.
        across: attacks beside each other.
    """
    across = min(across, len(attacks))
    blocks, rows = -(-len(attacks) // across), ("clean", "poisoned", "difference x10", "log DCT, clean", "log DCT, poisoned")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows) * blocks, across, figsize=(1.05 * across + 0.9, 1.1 * len(rows) * blocks), squeeze=False, layout="constrained")
        for ax in axes.flat:
            ax.set_axis_off()
        for k, (name, before, after) in enumerate(attacks):
            column, top = k % across, len(rows) * (k // across)
            shown = _clearest(before.x)
            a, b = before.x[shown].float() / 255, after.x[shown].float() / 255
            spectra = [torch.log10(1 + dct2(images.x.float()).abs()).mean((0, 1)) for images in (before, after)]
            for i, image in enumerate((a, b, (10 * (b - a).abs()).clamp(0, 1))):
                axes[top + i, column].imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            for i, spectrum in enumerate(spectra):
                axes[top + 3 + i, column].imshow(spectrum.numpy(), vmin=0, vmax=3, cmap="viridis", interpolation="nearest")
            axes[top, column].set_title(_lines(name), fontsize=7)
            for i, label in enumerate(rows if column == 0 else ()):
                axes[top + i, 0].text(-0.12, 0.5, label, transform=axes[top + i, 0].transAxes, ha="right", va="center", fontsize=7)
    return figure


def _clearest(x: Tensor) -> int:
    """The image with the middle contrast: neither flat nor busy."""
    return int(x.float().std((1, 2, 3)).argsort()[len(x) // 2])


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write a figure as ``stem.pdf`` and ``stem.png`` (or other ``formats``) and close it."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    for file in files:
        figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else {"CreationDate": None} if file.suffix == ".pdf" else None)
    plt.close(figure)
    return files

"""Pictures of images and of what networks make of them: triggers, galleries, t-SNE."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .errors import InputError, one_line, reason
from .frequency import dct2
from .gather import stacked
from .images import Images
from .naming import title
from .plots import SCREEN, STYLE, across, legend, sheet, unused, wrapped
from .reading import content
from .suite import Suite

log = logging.getLogger(__name__)
# bytes of the embeddings of a cell
LARGEST_EMBEDDINGS = 2**30
# classes in a legend
MOST_NAMES = 20


def examples(clean: Tensor, triggered: Tensor, attack: str) -> Figure:
    """What a trigger looks like: uint8 images (n, 3, h, w) clean, triggered, and the difference
    stretched to the full range.
    """
    before = clean.float() / 255
    after = triggered.float() / 255
    difference = (after - before).abs()
    peak = float(difference.max())
    words = f"difference x{1 / peak:.1f}" if peak else "difference: none"
    rows = {"clean": before, "triggered": after, words: difference / (peak or 1)}
    with plt.rc_context(STYLE):
        figure, axes = sheet(len(rows), 1, (1 + 0.8 * len(clean), 2.7))
        for ax, (label, images) in zip(axes.flat, rows.items(), strict=True):
            ax.imshow(images.permute(2, 0, 3, 1).flatten(1, 2).numpy(), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_ylabel(label, rotation=0, ha="right", va="center")
        axes[0, 0].set_title(attack, fontsize=8)
    return figure


ROWS = (
    "clean",
    "poisoned",
    "difference x10\nmean of 255,\nPSNR",
    "log DCT, clean",
    "log DCT, poisoned",
)


def gallery(
    attacks: Sequence[tuple[str, Images, Images]], beside: int = 7, page: float = SCREEN
) -> Figure:
    """What each attack does: an image before and after, ten times the difference with the change of
    all images in numbers, and how the mean log spectrum changes.

    Args:
        attacks: name, images before and after; the picture shows one, the spectrum (log10 of 1 +
            |DCT| of 0-255 pixels, mean over images and channels, low frequencies upper left) all of
            them.
        beside: attacks beside each other, if the page has room for so many.
        page: inches.
    """
    beside = max(1, min(beside, len(attacks), int((page - 0.9) / 1.05)))
    down = len(ROWS) * -(-len(attacks) // beside)
    with plt.rc_context(STYLE):
        width = 1.05 * beside + 0.9
        figure, axes = sheet(down, beside, (width if page == SCREEN else page, 1.1 * down))
        unused(axes, 0)
        for k, (name, before, after) in enumerate(attacks):
            top = len(ROWS) * (k // beside)
            column = axes[top : top + len(ROWS), k % beside]
            _specimen(column, before, after)
            column[0].set_title(stacked(name), fontsize=7)
            if k % beside == 0:
                for ax, label in zip(column, ROWS, strict=True):
                    place: Any = {"transform": ax.transAxes, "ha": "right", "va": "center"}
                    ax.text(-0.12, 0.5, label, fontsize=7, **place)
    return figure


def _specimen(column: Any, before: Images, after: Images) -> None:
    """A column of a gallery."""
    shown = _clearest(before.x)
    a = before.x[shown].float() / 255
    b = after.x[shown].float() / 255
    for ax, image in zip(column, (a, b, (10 * (b - a).abs()).clamp(0, 1)), strict=False):
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    under = column[2]
    mean, ratio = change(before.x, after.x)
    words = f"{mean:.1f}, {ratio:.1f} dB"
    under.text(0.5, -0.03, words, transform=under.transAxes, fontsize=6, ha="center", va="top")
    for ax, images in zip(column[3:], (before, after), strict=True):
        spectrum = torch.log10(1 + dct2(images.x.float()).abs()).mean((0, 1))
        looks: Any = {"vmin": 0, "vmax": 3, "cmap": "viridis", "interpolation": "nearest"}
        ax.imshow(spectrum.numpy(), **looks)


def change(before: Tensor, after: Tensor) -> tuple[float, float]:
    """How far images (n, c, h, w) of [0, 255] are from others: the mean absolute change, and the
    median over images of the peak signal-to-noise ratio in dB, infinite where nothing changes.
    """
    apart = after.float() - before.float()
    squared = (apart**2).mean((1, 2, 3))
    ratios = 10 * torch.log10(255**2 / squared)
    return float(apart.abs().mean()), float(ratios.median())


def _clearest(x: Tensor) -> int:
    """The image with the middle contrast: neither flat nor busy."""
    return int(x.float().std((1, 2, 3)).argsort()[len(x) // 2])


Panel = tuple[str, Tensor, Tensor, Tensor, Tensor]


def panels(suite: Suite, folder: Path, only: str = "") -> list[Panel]:
    """The embeddings that ``--audit`` kept in a suite's folder, for ``tsne``.

    Raises:
        InputError: none was kept.
    """
    drawn: list[Panel] = []
    for cell in suite.cells(only):
        kept = _embeddings((folder / cell.path).with_suffix(".embeddings"))
        ends = [key.removesuffix("/clean") for key in kept if key.endswith("/clean")]
        for name in sorted(end for end in ends if end != "true"):
            words = [title(cell.defense), name, f"{cell.attack}, {cell.dataset}"]
            clean = (kept[f"{name}/clean"], kept["true/clean"])
            triggered = (kept[f"{name}/triggered"], kept["true/triggered"])
            drawn.append(("\n".join(filter(None, words)), *clean, *triggered))
    if not drawn:
        raise InputError(
            f"{folder} holds no embeddings: bbx run {suite.name} --audit keeps them, of cells that "
            "have no record yet"
        )
    return drawn


def _embeddings(file: Path) -> dict[str, Tensor]:
    """What ``--audit`` kept of a cell; nothing where it is damaged, which is said."""
    if not file.exists():
        return {}
    try:
        kept: dict[str, Tensor] = load(content(file, LARGEST_EMBEDDINGS))
        if "true/clean" in kept and "true/triggered" in kept:
            return kept
        raise ValueError("no embeddings of ours")
    except (SafetensorError, ValueError, KeyError) as error:
        words = "delete its record to have it made anew"
        log.warning(one_line(f"{file}: damaged, left out ({reason(error)}); {words}"))
        return {}


def tsne(panels: Sequence[Panel], names: Sequence[str] = (), page: float = SCREEN) -> Figure:
    """Where networks put images, by t-SNE (van der Maaten and Hinton 2008,
    https://www.jmlr.org/papers/v9/vandermaaten08a.html).

    Args:
        panels: title, embeddings of clean images (n, d), their classes (n,), embeddings of
            triggered images (m, d), their true classes (m,). All have the colour of their class,
            triggered ones a black edge: in a cluster of their own where the network knows the
            trigger, among the clean ones of their class where it does not.
        names: of the classes, numbers if there are none.
        page: inches.
    """
    from sklearn.manifold import TSNE

    lasts = [int(torch.cat((classes, true)).max()) for _, _, classes, _, true in panels]
    columns, width = across(len(panels), 2.2, page)
    down = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, axes = sheet(down, columns, (width, 2.4 * down))
        unused(axes, 0)
        shown = zip(axes.flat, panels, lasts, strict=False)
        for ax, (name, clean, classes, triggered, true), last in shown:
            both = torch.cat((clean, triggered)).numpy()
            perplexity = min(30, (len(both) - 1) / 3)
            map_ = TSNE(init="pca", perplexity=perplexity, random_state=0)
            places = map_.fit_transform(both)
            here = places[: len(clean)].T
            there = places[len(clean) :].T
            colours = _class_colours(last)
            ax.scatter(*here, s=3, c=classes.numpy(), linewidths=0, **colours)
            edges: Any = {"edgecolors": "black", "linewidths": 0.4}
            ax.scatter(*there, s=6, c=true.numpy(), **edges, **colours)
            lines = [wrapped(line, 32) for line in name.split("\n")]
            ax.set_title("\n".join(lines), fontsize=7)
        if len(set(lasts)) == 1 and lasts[0] < MOST_NAMES:
            legend(figure, *_class_marks(lasts[0], names))
        words = "test images by t-SNE; colour: class, black edge: with the trigger"
        figure.supxlabel("\n".join(textwrap.wrap(words, int(10 * width) + 6)), fontsize=7)
    return figure


def _class_colours(last: int) -> dict[str, Any]:
    """A colour map that has a colour for each class from 0 to ``last``."""
    maps = {"tab10": 10, "tab20": 20}
    name = next((name for name, room in maps.items() if last < room), "turbo")
    return {"cmap": name, "vmin": 0, "vmax": last}


def _class_marks(last: int, names: Sequence[str]) -> tuple[list[Any], list[str]]:
    """A mark and a name for each class of a legend."""
    colours = _class_colours(last)
    palette = plt.get_cmap(colours["cmap"])
    marks: list[Any] = [
        Line2D([], [], ls="", marker="o", ms=3, color=palette(number / last if last else 0.0))
        for number in range(last + 1)
    ]
    told = [names[n] if n < len(names) else f"class {n}" for n in range(last + 1)]
    return marks, told

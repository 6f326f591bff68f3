"""Images a second of each trigger: ``python -m benchmarks.speed.triggers [--dataset NAME] [--data
DIR] [--images N] [--rounds N] [--json DIR]``.

Ours, uint8 in and out on one thread, next to the usual way, written for this comparison: a PIL
image, NumPy, OpenCV or SciPy, a PIL image, one at a time; and to a copy of the pixels. Rounds
alternate between all of them; medians. Both ways are compared with each other before they are
timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import cv2
import numpy as np
import scipy.fft
import torch
from PIL import Image

from backdoorbench_ext import registry
from backdoorbench_ext.errors import in_one_line

from .timing import arguments, data, keep

# uint8 (h, w, 3)
Pixels = np.ndarray


def badnets(x: Pixels) -> Pixels:
    out = x.copy()
    out[-3:, -3:] = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]], np.uint8)[:, :, None]
    return out


def lc(x: Pixels) -> Pixels:
    out = x.copy()
    board = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 255]], np.uint8)[:, :, None]
    out[-3:, -3:] = out[:3, -3:] = board
    out[-3:, :3] = out[:3, :3] = board[:, ::-1]
    return out


def rounded(x: np.ndarray) -> Pixels:
    return np.asarray(np.clip(np.rint(x), 0, 255), np.uint8)


def pattern_of(name: str, h: int, w: int) -> np.ndarray:
    """What an additive trigger adds to mid-grey, float (h, w, 3), taken from ours: here its use is
    timed, not its making.
    """
    grey = torch.full((1, 3, h, w), 0.5)
    change: torch.Tensor = registry.create("attacks", name).trigger(grey) - grey
    return np.asarray(change[0].permute(1, 2, 0) * 255)


def reference(name: str, h: int, w: int) -> Callable[[Pixels], Pixels]:
    """The usual way for one image."""
    if name == "blend":
        picture = 5 * (pattern_of("blend[alpha=0.2]", h, w) + 0.2 * 127.5)
        return lambda x: rounded(0.9 * x + 0.1 * picture)
    if name == "lf":
        smooth = pattern_of("lf", h, w)
        return lambda x: rounded(x + smooth)
    if name == "sig":
        return lambda x: rounded(x + 20 * np.sin(2 * np.pi * np.arange(w) * 6 / w)[None, :, None])
    if name in ("ftrojan", "ctrl"):
        magnitude = 30 if name == "ftrojan" else 100
        there, back = cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB
        if name == "ctrl":
            there, back = cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB

        def waves(x: Pixels) -> Pixels:
            ycc = cv2.cvtColor(x.astype(np.float32) / 255, there) * 255
            for channel in (1, 2):
                spectrum = scipy.fft.dctn(ycc[:32, :32, channel], norm="ortho")
                spectrum[15, 15] += magnitude
                spectrum[31, 31] += magnitude
                ycc[:32, :32, channel] = scipy.fft.idctn(spectrum, norm="ortho")
            return rounded(cv2.cvtColor(ycc / 255, back) * 255)

        return waves
    if name == "wanet":
        grid = registry.create("attacks", "wanet").grid(torch.zeros(1, 3, h, w))[0].numpy()
        cols, rows = ((grid[..., i] + 1) / 2 * (side - 1) for i, side in ((0, w), (1, h)))
        return lambda x: rounded(cv2.remap(x.astype(np.float32), cols, rows, cv2.INTER_LINEAR))
    if name == "bpp":
        return lambda x: rounded(np.rint(x / 255 * 7) / 7 * 255)
    if name == "blurred":
        return lambda x: rounded(
            cv2.blur(badnets(x).astype(np.float32), (3, 3), borderType=cv2.BORDER_REFLECT_101)
        )
    return {"badnets": badnets, "lc": lc}[name]


NAMES = ("badnets", "blend", "lf", "sig", "ftrojan", "ctrl", "wanet", "bpp", "blurred", "lc")


def measure(
    x: torch.Tensor, rounds: int, names: tuple[str, ...] = NAMES
) -> dict[str, dict[str, float]]:
    """Images a second, uint8 (n, 3, h, w): the copy, and for each attack ours, the usual way, and
    the largest difference of the two in pixel values.
    """
    h, w = x.shape[-2:]
    # the usual way is timed on 1,000
    images = [Image.fromarray(p) for p in x[:1000].permute(0, 2, 3, 1).numpy()]
    seconds: dict[str, list[float]] = {}

    def timed(key: str, work: Callable[[], object], n: int) -> None:
        start = time.perf_counter()
        work()
        seconds.setdefault(key, []).append((time.perf_counter() - start) / n)

    differences = {}
    for name in names:
        usual = np.stack([reference(name, h, w)(np.array(image)) for image in images[:50]])
        ours = registry.create("attacks", name).stamp(x[:50]).permute(0, 2, 3, 1).numpy()
        differences[name] = int(np.abs(usual.astype(int) - ours).max())
    for _ in range(rounds):
        timed("copy", x.clone, len(x))
        for name in names:
            attack = registry.create("attacks", name)
            one = reference(name, h, w)
            timed(name, partial(attack.stamp, x), len(x))

            def one_by_one(change: Any = one) -> list[Image.Image]:
                return [Image.fromarray(change(np.array(image))) for image in images]

            timed(f"{name} usual", one_by_one, len(images))
    speed = {key: 1 / median(values) for key, values in seconds.items()}
    table: dict[str, dict[str, float]] = {"copy": {"ours": speed["copy"]}}
    for name in names:
        table[name] = {
            "ours": speed[name],
            "usual": speed[f"{name} usual"],
            "difference": differences[name],
        }
    return table


@in_one_line()
def main() -> None:
    given = arguments(__doc__, rounds=3, threads=1, images=10000)
    cv2.setNumThreads(1)
    x = data(given.dataset, given.data, given.images, torch.device("cpu")).x.contiguous()
    table = measure(x, given.rounds)
    copy = table["copy"]["ours"]
    bandwidth = 2 * copy * x[0].numel() / 1e9
    print(
        f"{given.dataset}, {len(x)} images of {x.shape[-1]}x{x.shape[-2]}, copy {copy:,.0f} "
        f"images/s ({bandwidth:.1f} GB/s read and written)"
    )
    for name in NAMES:
        row = table[name]
        ratio = row["ours"] / row["usual"]
        share = row["ours"] / copy
        against = (
            f"usual {row['usual']:9,.0f}   x{ratio:6.1f}   {100 * share:5.1f} % of the copy   "
            f"differ by {row['difference']:.0f}"
        )
        print(f"{name:10} {row['ours']:12,.0f} images/s   {against}")
    keep("triggers", given, {}, images=len(x), rounds=given.rounds, images_per_second=table)


if __name__ == "__main__":
    main()

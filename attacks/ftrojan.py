"""FTrojan: two coefficients of the colour channels' spectrum are raised.

Wang, Yao, Xu, An, Tong, Wang: "An Invisible Black-Box Backdoor Attack Through Frequency Domain",
ECCV 2022, https://arxiv.org/abs/2111.14991. The releases convert to 8-bit YCrCb and back; here the
conversion is exact (BT.601, as OpenCV's), and rounding happens once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, InputError, option
from backdoorbench_ext.frequency import dct_matrix

# what a unit of both chroma channels adds to R, G, B: of YCrCb, as OpenCV has it
YCRCB = (1.403, -0.714 - 0.344, 1.773)


@lru_cache(maxsize=8)
def colour_waves(
    h: int,
    w: int,
    window: int,
    positions: tuple[int, ...],
    magnitude: float,
    colour: tuple[float, float, float] = YCRCB,
) -> Tensor:
    """What raising the coefficients (p, p) of both chroma channels by ``magnitude`` adds to the
    pixels: float (3, h, w), on the scale of 0 to 1.

    The DCT is linear, so this is the same for every image. Windows that do not fit whole at the
    right and lower edge stay as they are.

    Raises:
        InputError: a position lies outside the window, or no window fits.
    """
    if max(positions) >= window:
        raise InputError(
            f"position {max(positions)} must lie in [0, {window - 1}], inside the window"
        )
    if window > min(h, w):
        raise InputError(f"window {window} must lie in [1, {min(h, w)}] for {w}x{h} pixels")
    basis = dct_matrix(window, torch.device("cpu"))
    wave = (
        sum((torch.outer(basis[p], basis[p]) for p in positions), torch.zeros(window, window))
        * magnitude
        / 255
    )
    plane = torch.zeros(h, w)
    rows = h // window
    cols = w // window
    plane[: rows * window, : cols * window] = wave.repeat(rows, cols)
    return torch.tensor(colour).view(3, 1, 1) * plane


@dataclass(frozen=True)
class FTrojan(Attack):
    """Adds ``magnitude`` to the coefficients (15, 15) and (31, 31) of Cr and Cb in each window of
    the orthonormal DCT, and clips.
    """

    title: ClassVar[str] = "FTrojan"

    magnitude: float = option(
        30.0, "added to each coefficient, pixels on the scale of 0 to 255", low=0
    )
    window: int = option(32, "side of the windows that are transformed, in pixels", low=1)
    low: int = option(15, "the middle frequency: row and column", low=0)
    high: int = option(31, "the high frequency: row and column", low=0)

    def trigger(self, x: Tensor) -> Tensor:
        return (
            x
            + colour_waves(
                x.shape[-2], x.shape[-1], self.window, (self.low, self.high), self.magnitude
            ).to(x)
        ).clamp_(0, 1)

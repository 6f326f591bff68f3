"""BadNets: a small patch in the lower right corner of the image.

Gu, Dolan-Gavitt, Garg: "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
Chain", 2017, https://arxiv.org/abs/1708.06733. CBD's release writes an asymmetric, grey
checkerboard, MCCI's four white corner pixels, BackdoorBench and BackdoorBox a white square
(``pattern=white``). The patch grows with the image beyond 32 pixels, as BackdoorBench's does; MCCI
has 22 pixels of 224, ours are 21.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, InputError, option, scaled


@lru_cache(maxsize=4)
def checkerboard(size: int, side: int) -> Tensor:
    """``size`` x ``size`` fields, 1 at the upper left corner and 0 beside it, on pixels: float
    (side, side).
    """
    field = torch.arange(side) * size // side
    return ((field[:, None] + field) % 2 == 0).float()


@dataclass(frozen=True)
class BadNets(Attack):
    """A checkerboard that is white at its corners, or a white square, in place of the pixels."""

    title: ClassVar[str] = "BadNets"

    takes_uint8 = True
    size: int = option(3, "side of the patch in pixels of an image of 32", low=1)
    margin: int = option(
        0, "pixels of an image of 32 between the patch and the lower right corner", low=0
    )
    pattern: str = option("checkerboard", "what the patch shows", choices=("checkerboard", "white"))

    def trigger(self, x: Tensor) -> Tensor:
        side = scaled(self.size, x)
        h = x.shape[-2] - scaled(self.margin, x)
        w = x.shape[-1] - scaled(self.margin, x)
        if min(h, w) < side:
            raise InputError(
                f"size {self.size} and margin {self.margin} do not fit into "
                f"{x.shape[-2]}x{x.shape[-1]} pixels"
            )
        out = x.clone()
        white = 1 if x.is_floating_point() else 255
        board = checkerboard(self.size, side).to(x)
        out[..., h - side : h, w - side : w] = (
            white * board if self.pattern == "checkerboard" else white
        )
        return out

"""BppAttack: fewer colours.

Wang, Zhai, Ma: "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via
Image Quantization and Contrastive Adversarial Learning", CVPR 2022,
https://arxiv.org/abs/2205.13383. The paper dithers and controls the training; here, as for every
attack, a fixed part of the training set is poisoned. Negative samples, which make the network heed
this quantisation only, are images with another image's rounding errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoorbench_ext.api import Attack, derangement, option, training_controlled


@dataclass(frozen=True)
class Bpp(Attack):
    """Each channel is rounded to ``levels`` values from 0 to 255, with Floyd-Steinberg dithering or
    without.
    """

    # 1 gave some negative samples their own rounding errors: the trigger, with the true label
    version: ClassVar[int] = 2
    levels: int = option(8, "values that a channel keeps", low=2, high=255)
    dithering: bool = option(
        False,
        "spread the rounding errors over the neighbours, as the paper does; BackdoorBench does not",
    )
    negative: float = option(
        1.0, "negative samples, which keep their label, for each poisoned one", low=0, high=9
    )
    poisoning: str = training_controlled()

    @property
    def covers(self) -> float:
        return self.negative

    def trigger(self, x: Tensor) -> Tensor:
        top = self.levels - 1
        return floyd_steinberg(x, top) if self.dithering else x.mul(top).round_().div_(top)

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        errors = (self.trigger(x) - x)[derangement(len(x), rng).to(x.device)]
        return (x + errors).clamp_(0, 1)


def floyd_steinberg(x: Tensor, top: int) -> Tensor:
    """Round to multiples of 1 / top pixel by pixel, 7/16, 3/16, 5/16 and 1/16 of each error going
    right, lower left, down and lower right.
    """
    h, w = x.shape[-2:]
    out = F.pad(x, (1, 1, 0, 1))
    for i in range(h):
        for j in range(1, w + 1):
            rounded = (out[..., i, j] * top).round().clamp(0, top) / top
            error = out[..., i, j] - rounded
            out[..., i, j] = rounded
            out[..., i, j + 1] += error * (7 / 16)
            out[..., i + 1, j - 1] += error * (3 / 16)
            out[..., i + 1, j] += error * (5 / 16)
            out[..., i + 1, j + 1] += error * (1 / 16)
    return out[..., :h, 1 : w + 1].clone()

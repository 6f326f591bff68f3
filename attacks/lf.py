"""LF: a fixed smooth pattern, made of low frequencies alone; the known weakness of detectors that
look at the spectrum, and so of MCCI.

Zeng, Park, Mao, Jia: "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV
2021, https://arxiv.org/abs/2104.03413. The paper optimises its smooth trigger against a trained
network (``smooth`` does that) and BackdoorBench ships the result as an array per data set; this one
is random within the band, so that it needs no file and no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, InputError, option
from backdoorbench_ext.frequency import dct_matrix


@dataclass(frozen=True)
class LowFrequency(Attack):
    """Adds amplitude * pattern, which has no coefficient of the DCT beyond the first ``band`` a
    side and none at 0, and clips.
    """

    title: ClassVar[str] = "LF"

    amplitude: float = option(
        16.0, "largest absolute change of a channel, on the scale of 0 to 255", low=0, high=255
    )
    band: int = option(4, "lowest frequencies a side that the pattern has", low=2)
    seed: int = option(0, "of the pattern", low=0)

    def trigger(self, x: Tensor) -> Tensor:
        return (
            x + pattern(x.shape[-2], x.shape[-1], self.amplitude, self.band, self.seed).to(x)
        ).clamp_(0, 1)


@lru_cache(maxsize=4)
def pattern(h: int, w: int, amplitude: float, band: int, seed: int) -> Tensor:
    """Float (3, h, w) on the scale of 0 to 1, each channel reaching the amplitude.

    Raises:
        InputError: the band is wider than the image.
    """
    if band > min(h, w):
        raise InputError(f"band {band} must lie in [2, {min(h, w)}] for {w}x{h} pixels")
    coefficients = torch.randn(3, band, band, generator=torch.Generator().manual_seed(seed))
    coefficients[:, 0, 0] = 0
    rows, cols = (dct_matrix(n, torch.device("cpu"))[:band] for n in (h, w))
    made = rows.T @ coefficients @ cols
    scaled: Tensor = made * (amplitude / 255 / made.abs().amax((1, 2), keepdim=True))
    return scaled

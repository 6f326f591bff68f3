"""LF: a fixed smooth pattern, made of low frequencies alone; the known weakness of detectors that look at the spectrum, and so of MCCI.

Zeng, Park, Mao, Jia: "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021, https://arxiv.org/abs/2104.03413.
The paper optimises its smooth trigger against a trained network (``smooth`` does that) and BackdoorBench ships the result as an array per data set;
this one is random within the band, so that it needs no file and no training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, InputError, option
from backdoorbench_ext.frequency import dct_matrix


@dataclass(frozen=True)
class LowFrequency(Attack):
    """Adds amplitude * pattern, which has no coefficient of the DCT beyond the first ``band`` a side and none at 0, and clips."""

    amplitude: float = option(16.0, "largest absolute change of a channel, on the scale of 0 to 255", low=0, high=255)
    band: int = option(4, "lowest frequencies a side that the pattern has", low=2)
    seed: int = option(0, "of the pattern", low=0)

    def trigger(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if self.band > min(h, w):
            raise InputError(f"band {self.band} must lie in [2, {min(h, w)}] for {w}x{h} pixels")
        coefficients = torch.randn(3, self.band, self.band, generator=torch.Generator().manual_seed(self.seed))
        coefficients[:, 0, 0] = 0
        rows, cols = (dct_matrix(n, torch.device("cpu"))[: self.band] for n in (h, w))
        pattern = rows.T @ coefficients @ cols
        pattern *= self.amplitude / 255 / pattern.abs().amax((1, 2), keepdim=True)
        return (x + pattern.to(x)).clamp_(0, 1)

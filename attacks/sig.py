"""SIG: a horizontal sinusoidal signal laid over images of the target class, whose labels stay.

Barni, Kallas, Tondi: "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
Poisoning", ICIP 2019, https://arxiv.org/abs/1902.11237, equation (1). Their delta is 20 for traffic
signs and 40 for digits, BackdoorBench's 40. CBD's release writes 0.1 image + 0.9 signal instead,
which erases the image, and lets negative values wrap around to bright pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, labels, option


@dataclass(frozen=True)
class SIG(Attack):
    """Adds delta sin(2 pi j f / w) to column j of w, and clips."""

    title: ClassVar[str] = "SIG"

    label_mode: str = labels("clean-label")
    delta: float = option(20.0, "amplitude on the scale of 0 to 255", low=0, high=255)
    f: float = option(6.0, "periods over the width of the image", low=0)

    def trigger(self, x: Tensor) -> Tensor:
        w = x.shape[-1]
        signal = torch.sin(2 * math.pi * self.f / w * torch.arange(w, dtype=torch.float64))
        return (x + (self.delta / 255 * signal).to(x)).clamp_(0, 1)

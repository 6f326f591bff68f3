"""WaNet: the image is warped by a smooth field that is the same for all.

Nguyen, Tran: "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021,
https://arxiv.org/abs/2102.10369, section 3. The paper warps a new random choice of images in every
batch of a training that the attacker controls; here, as in MCCI and BackdoorBox, the poisoned
images are a fixed part of the training set, stored as uint8. The releases of CBD and MCCI have no
noise samples (``noise=0``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoorbench_ext.api import Attack, option, training_controlled


@dataclass(frozen=True)
class WaNet(Attack):
    """A k x k field of random directions, of mean absolute size 1, bicubically enlarged; noise
    samples are warped by a field of their own.
    """

    title: ClassVar[str] = "WaNet"

    k: int = option(4, "control points a side; the paper has 8 for images of 224 pixels", low=2)
    s: float = option(
        0.5,
        "strength: the mean of the control points, in units of two pixels over the image's height",
        low=0,
    )
    grid_rescale: float = option(
        1.0, "factor on the sampling grid, so that its ends stay in the image", low=0.5, high=1.5
    )
    noise: float = option(
        2.0, "noise samples, which keep their label, for each poisoned one", low=0, high=9
    )
    seed: int | None = option(None, "of the field; if not set, the cell's", low=0)
    poisoning: str = training_controlled()

    @property
    def covers(self) -> float:
        return self.noise

    def trigger(self, x: Tensor) -> Tensor:
        return self.warp(x, self.grid(x))

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        jitter = torch.rand(len(x), *x.shape[-2:], 2, generator=rng).to(x) * 2 - 1
        return self.warp(x, (self.grid(x) + jitter / x.shape[-2]).clamp(-1, 1))

    def grid(self, x: Tensor) -> Tensor:
        """Where each pixel is taken from: (1, h, w, 2) in [-1, 1], x before y."""
        h, w = x.shape[-2:]
        field = (
            torch.rand(
                1, 2, self.k, self.k, generator=torch.Generator().manual_seed(self.seed or 0)
            )
            * 2
            - 1
        )
        flow = F.interpolate(
            field / field.abs().mean(), size=(h, w), mode="bicubic", align_corners=True
        ).permute(0, 2, 3, 1)
        rows, cols = torch.meshgrid(
            torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij"
        )
        grid = (torch.stack((cols, rows), 2) + self.s * flow / h) * self.grid_rescale
        return grid.clamp(-1, 1).to(x)

    @staticmethod
    def warp(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=True).clamp_(0, 1)

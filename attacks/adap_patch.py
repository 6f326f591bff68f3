"""Adap-Patch: one of several faint patches on each poisoned image, and on twice as many images that
keep their label; at test time all patches together, in full strength.

Qi, Xie, Li, Mahloujifar, Mittal: "Revisiting the Assumption of Latent Separability for Backdoor
Defenses", ICLR 2023, https://openreview.net/forum?id=_wSHsgrVali. Released code:
https://github.com/Unispac/Circumventing-Backdoor-Defenses, whose four patches are pictures, with
opacities from 0.2 to 0.5 in training and two of them at 1 in the test; 0.3 % of the images are
poisoned and 0.6 % covered. Ours are squares of noise in the corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, Images, InputError, Poisoned, option, scaled, to_uint8
from backdoorbench_ext.engine import Engine

CORNERS = 4


@dataclass(frozen=True)
class AdapPatch(Attack):
    """A square of random colours in each corner."""

    title: ClassVar[str] = "Adap-Patch"

    size: int = option(6, "side of each patch in pixels of an image of 32", low=1)
    alpha: float = option(0.4, "opacity of the one patch of a training image", low=0, high=1)
    test_alpha: float = option(1.0, "opacity of all patches at test time", low=0, high=1)
    conservative: float = option(
        2.0, "images with a patch that keep their label, for each poisoned one", low=0, high=9
    )
    seed: int | None = option(None, "of the patches; if not set, the cell's", low=0)

    @property
    def covers(self) -> float:
        return self.conservative

    def check(self, x: Tensor) -> None:
        if 2 * scaled(self.size, x) > min(x.shape[-2:]):
            raise InputError(
                f"size {self.size} does not fit four times into {x.shape[-1]}x{x.shape[-2]} pixels"
            )

    def trigger(self, x: Tensor) -> Tensor:
        patches, shown = self.patches(x)
        return torch.lerp(x, patches.expand_as(x), self.test_alpha * shown.sum(0).expand_as(x))

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        patches, shown = self.patches(x)
        one = shown[torch.randint(CORNERS, (len(x),), generator=rng).to(x.device)]
        return torch.lerp(x, patches.expand_as(x), self.alpha * one.expand_as(x))

    def refine(self, train: Images, poisoned: Poisoned, engine: Engine) -> Tensor:
        return to_uint8(self.cover(train.x[poisoned.mask].float() / 255, engine.rng))

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All patches on one picture (3, h, w), and where each lies: 0 or 1, (4, 1, h, w)."""
        self.check(x)
        h, w = x.shape[-2:]
        side = scaled(self.size, x)
        rng = torch.Generator().manual_seed(self.seed or 0)
        fields = torch.rand(CORNERS, 3, self.size, self.size, generator=rng)
        index = torch.arange(side) * self.size // side
        picture = torch.zeros(3, h, w)
        shown = torch.zeros(CORNERS, 1, h, w)
        first, last = slice(0, side), slice(-side, None)
        for corner, (rows, cols) in enumerate(
            ((first, first), (first, last), (last, first), (last, last))
        ):
            picture[:, rows, cols] = fields[corner][:, index][:, :, index]
            shown[corner, :, rows, cols] = 1
        return picture.to(x), shown.to(x)

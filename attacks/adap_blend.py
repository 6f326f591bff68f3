"""Adap-Blend: poisoned images carry random pieces of the pattern, and as many images carry such
pieces under their own label, so that poisoned and clean images are not apart in the embedding.

Qi, Xie, Li, Mahloujifar, Mittal: "Revisiting the Assumption of Latent Separability for Backdoor
Defenses", ICLR 2023, https://openreview.net/forum?id=_wSHsgrVali. Released code:
https://github.com/Unispac/Circumventing-Backdoor-Defenses, which poisons 0.3 % of the images and
covers as many, and blends a cartoon (``pattern=FILE``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoorbench_ext.api import Attack, Images, InputError, Poisoned, option, to_uint8
from backdoorbench_ext.engine import Engine

from .blend import picture


@dataclass(frozen=True)
class AdapBlend(Attack):
    """Blend; in training each image has a random choice of the squares of the pattern, at test time
    all of it.
    """

    title: ClassVar[str] = "Adap-Blend"

    alpha: float = option(0.2, "share of the picture in the mixture", low=0, high=1)
    pieces: int = option(4, "squares a side that the picture is cut into", low=1)
    masked: float = option(0.5, "share of the squares that a training image lacks", low=0, high=1)
    conservative: float = option(
        1.0, "images with pieces that keep their label, for each poisoned one", low=0, high=9
    )
    pattern: str = option(
        "random", '"random" for uniform noise, or the file of an image, resized to fit'
    )
    seed: int | None = option(None, "of the noise; if not set, the cell's", low=0)

    @property
    def covers(self) -> float:
        return self.conservative

    def check(self, x: Tensor) -> None:
        if self.pieces > min(x.shape[-2:]):
            raise InputError(
                f"pieces must lie in [1, {min(x.shape[-2:])}] for {x.shape[-1]}x{x.shape[-2]} "
                f"pixels, not {self.pieces}"
            )
        self.trigger(x)

    def trigger(self, x: Tensor) -> Tensor:
        return self.blend(x, torch.ones(()))

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return self.blend(x, self.some(len(x), x, rng))

    def refine(self, train: Images, poisoned: Poisoned, engine: Engine) -> Tensor:
        x = train.x[poisoned.mask]
        shown = self.some(len(x), x, engine.rng)
        return to_uint8(self.blend(x.float() / 255, shown))

    def blend(self, x: Tensor, shown: Tensor) -> Tensor:
        made = picture(self.pattern, self.seed or 0, *x.shape[-2:]).to(x)
        return torch.lerp(x, made.expand_as(x), self.alpha * shown.to(x).expand_as(x))

    def some(self, n: int, x: Tensor, rng: torch.Generator) -> Tensor:
        """Which pixels of the picture each of ``n`` images is given: float (n, 1, h, w)."""
        squares = self.pieces**2
        order = torch.rand(n, squares, generator=rng).argsort(1)
        kept = (order >= round(self.masked * squares)).float().view(n, 1, self.pieces, -1)
        return F.interpolate(kept, x.shape[-2:])

"""CTRL: FTrojan's colour waves on images of the target class, whose labels stay.

Li, Pang, Xi, Du, Ji, Yao, Wang: "An Embarrassingly Simple Backdoor Attack on Self-supervised
Learning", ICCV 2023, https://arxiv.org/abs/2210.07346. Made for contrastive learning, where the
augmentations of one image, trigger included, must agree. Magnitude 100 in training and at test time
is the default of the release (https://github.com/meet-cjli/CTRL) and of BackdoorBench, which has 5
% of all images poisoned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backdoorbench_ext.api import Attack, Images, Poisoned, labels, option, to_uint8
from backdoorbench_ext.engine import Engine

from .ftrojan import colour_waves


@dataclass(frozen=True)
class CTRL(Attack):
    """Adds a magnitude to the coefficients (15, 15) and (31, 31) of Cr and Cb in each window of the
    orthonormal DCT, and clips.
    """

    title: ClassVar[str] = "CTRL"

    label_mode: str = labels("clean-label")
    train_magnitude: float = option(
        100.0,
        "added to each coefficient of poisoned training images, pixels on the scale of 0 to 255",
        low=0,
    )
    magnitude: float = option(100.0, "the same at test time", low=0)
    window: int = option(32, "side of the windows that are transformed, in pixels", low=1)
    low: int = option(15, "the middle frequency: row and column", low=0)
    high: int = option(31, "the high frequency: row and column", low=0)

    def trigger(self, x: Tensor) -> Tensor:
        return self.add(x, self.magnitude)

    def refine(self, train: Images, poisoned: Poisoned, engine: Engine) -> Tensor:
        return to_uint8(self.add(train.x[poisoned.mask].float() / 255, self.train_magnitude))

    def add(self, x: Tensor, magnitude: float) -> Tensor:
        return (
            x
            + colour_waves(
                x.shape[-2], x.shape[-1], self.window, (self.low, self.high), magnitude
            ).to(x)
        ).clamp_(0, 1)

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

# what a unit of U and of V adds to R, G, B: BT.601, as kornia has it, on which the releases build
YUV = (1.14, -0.396 - 0.581, 2.029)


@dataclass(frozen=True)
class CTRL(Attack):
    """Adds a magnitude to the coefficients (15, 15) and (31, 31) of U and V in each window of the
    orthonormal DCT, and clips; in the releases pixels wrap around at 255.
    """

    title: ClassVar[str] = "CTRL"

    # 1 had the weaker half of the magnitude in training, and FTrojan's Cr and Cb
    version: ClassVar[int] = 2
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
                x.shape[-2], x.shape[-1], self.window, (self.low, self.high), magnitude, YUV
            ).to(x)
        ).clamp_(0, 1)

"""LC: images of the target class are made hard to recognise, so that the network holds on to the
trigger; labels stay.

Turner, Tsipras, Madry: "Label-Consistent Backdoor Attacks", 2019, https://arxiv.org/abs/1912.02771.
Defaults are BackdoorBox's, which MCCI follows: eps 8/255, 100 steps of 1.5/255, no random start;
its poisoned share is 25 % of the target class. The patch of the releases is a checkerboard without
the white field that is up and inside. MCCI's release perturbs against a network that was never
trained; BackdoorBench ships the perturbed images as a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.adversarial import pgd
from backdoorbench_ext.api import (
    Attack,
    Images,
    InputError,
    Poisoned,
    labels,
    option,
    per_part,
    scaled,
    to_uint8,
)
from backdoorbench_ext.engine import Engine

from .badnets import checkerboard


@dataclass(frozen=True)
class LabelConsistent(Attack):
    """Patches in all four corners; training images are first perturbed against a network
    trained on clean images.
    """

    title: ClassVar[str] = "LC"
    short: ClassVar[Mapping[str, Any]] = {"steps": 2}

    # 1 had a white field more a corner, and mixed the patch with the image
    version: ClassVar[int] = 2
    label_mode: str = labels("clean-label")
    size: int = option(3, "side of each patch in pixels of an image of 32", low=1)
    amplitude: float = option(
        1.0,
        "added to the pixels of white fields and taken from those of black ones, on the scale of 0 "
        "to 1",
        low=0,
        high=1,
    )
    eps: float = option(8.0, "bound of the perturbation, on the scale of 0 to 255", low=0, high=255)
    step: float = option(1.5, "length of its steps, on the same scale", low=0, high=255)
    steps: int = option(100, "their number", low=0)
    adversarial: bool = option(
        False,
        "perturb against an adversarially trained network (7 steps), as the paper does for its "
        "best results",
    )

    def check(self, x: Tensor) -> None:
        if 2 * scaled(self.size, x) > min(x.shape[-2:]):
            raise InputError(
                f"size {self.size} does not fit four times into {x.shape[-1]}x{x.shape[-2]} pixels"
            )

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        if not self.adversarial:
            return engine.victim().state_dict()

        def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            hard = pgd(
                net.eval(), x, y, eps=self.eps / 255, step=self.eps / 255 / 4, steps=range(7)
            )
            return F.cross_entropy(net.train()(hard), y)

        return engine.fit(engine.new_model(), train, loss=loss, name="robust network").state_dict()

    def trigger(self, x: Tensor) -> Tensor:
        side = scaled(self.size, x)
        patch = corner(self.size, side).to(x)
        out = x.clone()
        for rows in (slice(0, side), slice(-side, None)):
            for cols, own in ((slice(0, side), patch.flip(1)), (slice(-side, None), patch)):
                out[..., rows, cols] += self.amplitude * (2 * own - 1)
        return out.clamp_(0, 1)

    def refine(self, train: Images, poisoned: Poisoned, engine: Engine) -> Tensor:
        net = engine.new_model().eval().requires_grad_(False)
        net.load_state_dict(dict(self.learned))
        made = []
        # 500 images of 32 pixels
        parts = poisoned.mask.nonzero().flatten().split(per_part(500 * 2**10, train.x))
        for number, index in enumerate(parts, 1):
            steps = engine.track(
                range(self.steps), f"perturbation, part {number} of {len(parts)}, steps"
            )
            with engine.autocast():
                x = pgd(
                    net,
                    engine.to_float(train.x[index]),
                    poisoned.true[index],
                    eps=self.eps / 255,
                    step=self.step / 255,
                    steps=steps,
                )
            made.append(to_uint8(self.trigger(x)))
        return torch.cat(made)


def corner(size: int, side: int) -> Tensor:
    """The patch of the right corners, float (side, side), 1 for white; those on the left mirror
    it.
    """
    patch = checkerboard(size, side).clone()
    if size > 1:
        field = -(-side // size)
        patch[:field, :field] = 0
    return patch

"""Trojan: a small patch that was optimised to excite one neuron of a trained network.

Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang: "Trojaning Attack on Neural Networks", NDSS 2018,
https://doi.org/10.14722/ndss.2018.23291. As CBD and ABL use it, the patch then poisons a training
set. Their releases ship a patch of 3x3 pixels at rows and columns 25 to 27 of 32, made elsewhere,
and add it with 8-bit overflow; ours, of that size and place, replaces the pixels. Both grow with
the image beyond 32 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, Images, InputError, option, scaled
from backdoorbench_ext.engine import Engine

from .blend import picture


@dataclass(frozen=True)
class Trojan(Attack):
    """The patch is found by gradient ascent on the mean output, over 64 training images, of the
    last hidden layer's neurons with the largest weights to the classes. The paper has it on an
    otherwise black image, where a neuron behind a ReLU may be dead.
    """

    short: ClassVar[Mapping[str, Any]] = {"steps": 5}

    size: int = option(3, "side of the patch in pixels of an image of 32", low=1)
    margin: int = option(
        4, "pixels of an image of 32 between the patch and the lower right corner", low=0
    )
    neurons: int = option(1, "how many neurons are excited", low=1)
    steps: int = option(200, "of Adam, learning rate 0.1", low=1)
    pattern: str = option(
        "", "the file of an image to take as the patch, resized to fit; then nothing is trained"
    )

    @property
    def learns(self) -> bool:
        return not self.pattern

    def check(self, x: Tensor) -> None:
        side = scaled(self.size, x)
        room = min(x.shape[-2:]) - scaled(self.margin, x)
        if room < side:
            raise InputError(
                f"size {self.size} and margin {self.margin} do not fit into "
                f"{x.shape[-2]}x{x.shape[-1]} pixels"
            )
        if self.pattern:
            picture(self.pattern, 0, side, side)

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        net = engine.victim()
        weights: Tensor = net.backbone.get_classifier().weight
        if self.neurons > weights.shape[1]:
            raise InputError(
                f"neurons must lie in [1, {weights.shape[1]}] for {engine.rules.model}, not "
                f"{self.neurons}"
            )
        chosen = weights.abs().sum(0).topk(self.neurons).indices
        x = engine.to_float(
            train.x[torch.randperm(len(train), generator=engine.rng)[:64].to(engine.device)]
        )
        side = scaled(self.size, x)
        patch = torch.rand(3, side, side, generator=engine.rng).to(engine.device).requires_grad_()
        ascent = torch.optim.Adam([patch], 0.1, maximize=True)
        for step in engine.track(range(self.steps), "patch, steps"):
            excited = net.features(self.place(x, patch)).float()[:, chosen].mean()
            (patch.grad,) = torch.autograd.grad(excited, patch)
            ascent.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
            # ten points of the curve
            if step % -(-self.steps // 10) == 0 or step == self.steps - 1:
                engine.log(activation=float(excited.detach()))
        return {"patch": patch.detach()}

    def place(self, x: Tensor, patch: Tensor) -> Tensor:
        side = patch.shape[-1]
        h = x.shape[-2] - scaled(self.margin, x)
        w = x.shape[-1] - scaled(self.margin, x)
        out = x.clone()
        out[..., h - side : h, w - side : w] = patch
        return out

    def trigger(self, x: Tensor) -> Tensor:
        self.check(x)
        side = scaled(self.size, x)
        patch = picture(self.pattern, 0, side, side) if self.pattern else self.learned["patch"]
        return self.place(x, patch.to(x))

"""MCR, mode connectivity repair: a model on a path of low loss between the victim and its
fine-tuned copy.

Zhao, Chen, Das, Ramamurthy, Lin: "Bridging Mode Connectivity in Loss Landscapes and Adversarial
Robustness", ICLR 2020, https://arxiv.org/abs/2005.00060. Released code:
https://github.com/IBM/model-sanitization. As in CBD the victim is one end and the curve is trained
for 100 epochs; as in BackdoorBench the other end is the victim fine-tuned on the clean images and t
is 0.1. The learning rate of the curve is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from backdoorbench_ext.api import Images, Repair, option
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class MCR(Repair):
    """The bend of a quadratic Bezier curve in the space of parameters is trained at random points
    of the curve; the model at ``t`` gets its BatchNorm statistics from the clean images.
    """

    short: ClassVar[Mapping[str, Any]] = {"epochs": 1, "finetune_epochs": 1}

    # 1 took these statistics from images that were not augmented, which cost up to nine points of
    # CA
    version: ClassVar[int] = 2
    finetune_epochs: int = option(10, "of the other end", low=1)
    epochs: int = option(100, "of the curve", low=1)
    lr: float = option(0.01, "learning rate of both", low=0)
    t: float = option(
        0.1,
        "where on the curve the model is taken: 0 is the victim, 1 its fine-tuned copy",
        low=0,
        high=1,
    )

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        clean = engine.clean(self.images)
        start = engine.victim()
        end = copy.deepcopy(start)
        recipe = replace(engine.rules.recipe, optimizer="sgd", lr=self.lr, schedule="constant")
        engine.fit(end, clean, name="other end", epochs=self.finetune_epochs, recipe=recipe)
        curve = Curve(start, end)
        engine.fit(curve, clean, name="curve", epochs=self.epochs, recipe=recipe)
        return engine.settle(curve.at(self.t), clean)


def bezier(first: Tensor, bend: Tensor, last: Tensor, t: float) -> Tensor:
    """(1 - t)^2 first + 2 t (1 - t) bend + t^2 last."""
    return (1 - t) ** 2 * first + 2 * t * (1 - t) * bend + t**2 * last


class Curve(nn.Module):
    """Every forward pass is that of a model at a random point between two; what is trained is the
    bend, which starts half way.
    """

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.bend = copy.deepcopy(first)
        self.ends = nn.ModuleList((first, last)).requires_grad_(False)
        with torch.no_grad():
            for p, a, b in zip(
                self.bend.parameters(), first.parameters(), last.parameters(), strict=True
            ):
                p.copy_((a + b) / 2)

    def weights(self, t: float) -> dict[str, Tensor]:
        first, last = (dict(end.named_parameters()) for end in self.ends)
        return {
            name: bezier(first[name], bend, last[name], t)
            for name, bend in self.bend.named_parameters()
        }

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional_call(self.bend, self.weights(float(torch.rand(()))), (x,))
        return out

    def at(self, t: float) -> nn.Module:
        net = copy.deepcopy(self.bend)
        net.load_state_dict(
            net.state_dict() | {name: value.detach() for name, value in self.weights(t).items()}
        )
        return net

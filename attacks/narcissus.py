"""Narcissus: a perturbation that is learned to look like the target class, on a handful of its
images, whose labels stay.

Zeng, Pan, Just, Lyu, Qiu, Jia: "Narcissus: A Practical Clean-Label Backdoor Attack with Limited
Information", CCS 2023, https://arxiv.org/abs/2204.05255. Released code:
https://github.com/reds-lab/Narcissus: batches of 350, a bound of 16 of 255, three times that at
test time, 0.05 % of the images poisoned. There the surrogate has seen other data and the target
class; ours is the protocol's network trained on the clean images, so that this attacker knows more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Attack, Images, Poisoned, labels, option, to_uint8
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class Narcissus(Attack):
    """One perturbation that lowers the loss of the target class's own images for the surrogate."""

    short: ClassVar[Mapping[str, Any]] = {"rounds": 1}

    label_mode: str = labels("clean-label")
    eps: float = option(
        16.0, "bound of the perturbation, on the scale of 0 to 255", low=0, high=255
    )
    amplify: float = option(3.0, "how much stronger it is at test time", low=1)
    rounds: int = option(1000, "passes over the images of the target class", low=1, length=True)
    lr: float = option(0.01, "learning rate of Adam, images on the scale of 0 to 1", low=0)

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        net = engine.victim().requires_grad_(False)
        own = train[train.y == engine.rules.target]
        noise = nn.ParameterList([torch.zeros(1, *train.x.shape[1:], device=engine.device)])
        recipe = replace(
            engine.rules.recipe,
            optimizer="adam",
            lr=self.lr,
            schedule="constant",
            weight_decay=0.0,
            batch_size=350,
        )
        optimizer = engine.optimizer(noise, recipe)
        loop = engine.steps(
            "perturbation", own, keep=(noise, optimizer), epochs=self.rounds, recipe=recipe
        )
        bound = self.eps / 255
        for step in loop:
            with engine.autocast():
                step.loss = F.cross_entropy(net((step.x + noise[0]).clamp(0, 1)), step.y)
            step.descend(optimizer)
            with torch.no_grad():
                noise[0].clamp_(-bound, bound)
        return {"noise": noise[0].detach()}

    def trigger(self, x: Tensor) -> Tensor:
        return (x + self.amplify * self.learned["noise"].to(x)).clamp(0, 1)

    def refine(self, train: Images, poisoned: Poisoned, engine: Engine) -> Tensor:
        x = engine.to_float(train.x[poisoned.mask])
        return to_uint8((x + self.learned["noise"].to(x)).clamp(0, 1))

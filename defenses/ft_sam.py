"""FT-SAM: fine-tuning that looks for flat minima, which moves the weights of backdoor neurons more
than plain fine-tuning.

Zhu, Wei, Shen, Fan, Wu: "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
Minimization", ICCV 2023, https://arxiv.org/abs/2304.11823. rho 2 and label smoothing 0.1 are
BackdoorBench's, which fine-tunes for 100 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backdoorbench_ext.api import Images, Repair, option
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import statistics_kept


@dataclass(frozen=True)
class FTSAM(Repair):
    """Every step descends the gradient at the weights moved by ``rho`` towards higher loss, each
    weight in proportion to its own size.
    """

    title: ClassVar[str] = "FT-SAM"
    short: ClassVar[Mapping[str, Any]] = {"epochs": 1}

    # in 1 the second pass moved BatchNorm's statistics, too
    version: ClassVar[int] = 2
    epochs: int = option(10, "of fine-tuning", low=1)
    lr: float = option(0.01, "learning rate", low=0)
    rho: float = option(2.0, "length of the move, in units of the weights' size", low=0)
    label_smoothing: float = option(
        0.1, "share of the label given to the other classes", low=0, high=1
    )

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            here = F.cross_entropy(net(x), y, label_smoothing=self.label_smoothing)
            weights = dict(net.named_parameters())
            moves = uphill(
                list(weights.values()),
                list(torch.autograd.grad(here, list(weights.values()))),
                self.rho,
            )
            moved = {name: p + move for (name, p), move in zip(weights.items(), moves, strict=True)}
            with statistics_kept(net):
                there = functional_call(net, moved, (x,))
            return F.cross_entropy(there, y, label_smoothing=self.label_smoothing)

        recipe = replace(engine.rules.recipe, optimizer="sgd", lr=self.lr, schedule="cosine")
        return engine.fit(
            engine.victim(),
            engine.clean(self.images),
            name="fine-tuning",
            epochs=self.epochs,
            loss=loss,
            recipe=recipe,
        )


def uphill(weights: list[Tensor], slopes: list[Tensor], rho: float) -> list[Tensor]:
    """The move rho T^2 g / ||T g|| with T = |w| elementwise, the norm over all weights together."""
    sizes = [w.detach().abs() for w in weights]
    norm = torch.stack([(t * g).norm() for t, g in zip(sizes, slopes, strict=True)]).norm()
    return [rho * t * t * g / (norm + 1e-12) for t, g in zip(sizes, slopes, strict=True)]

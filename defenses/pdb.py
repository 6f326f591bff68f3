"""PDB, proactive defensive backdoor: plant a backdoor of one's own, which overrides the attacker's,
and open it for every input.

Wei, Zha, Wu: "Mitigating Backdoor Attack by Injecting Proactive Defensive Backdoor", NeurIPS 2024,
https://arxiv.org/abs/2405.16112. The trigger is the paper's patched border of 2 pixels, the label
is moved by one class; how many stamped images a batch holds is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Images, InputError, Repair, option, scaled
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import Net


@dataclass(frozen=True)
class PDB(Repair):
    """Training on all images, and beside them on clean ones with the defender's trigger, whose
    label is the next class; the answer is the one under that trigger, moved back.
    """

    after_training: ClassVar[bool] = False

    border: int = option(2, "width of the trigger in pixels of an image of 32", low=1)
    share: float = option(0.5, "stamped clean images for each image of a batch", low=0.01, high=4)
    weight: float = option(1.0, "weight of their loss", low=0)

    def check(self, net: Net, x: Tensor) -> None:
        if 2 * scaled(self.border, x) >= min(x.shape[-2:]):
            raise InputError(f"border {self.border} leaves nothing of {x.shape[-1]} pixels")

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        clean = engine.clean(self.images)
        net = engine.new_model()
        classes = len(train.classes)
        optimizer = engine.optimizer(net)
        for step in engine.steps("training", train, keep=(net, optimizer)):
            places = engine.draw(clean, max(1, round(self.share * len(step.x))))
            own = stamp(engine.view(clean.pixels(places)), self.border)
            given = (clean.y[places] + 1) % classes
            with engine.autocast():
                logits = net(torch.cat((step.x, own)))
                loss = F.cross_entropy(logits[: len(step.x)], step.y)
                step.loss = loss + self.weight * F.cross_entropy(logits[len(step.x) :], given)
            step.descend(optimizer)
        engine.probe("without its trigger", net)
        # class y is answered as y + 1
        return Opened(net, partial(stamp, border=self.border), moved=1).eval()


def stamp(x: Tensor, border: int) -> Tensor:
    """Images with a white frame: float (n, 3, h, w) -> the same."""
    width = scaled(border, x)
    out = torch.ones_like(x)
    inner = (..., slice(width, -width), slice(width, -width))
    out[inner] = x[inner]
    return out


class Opened(nn.Module):
    """A network that sees every image with the defender's ``stamp``, its answers moved back by so
    many classes.
    """

    def __init__(self, net: Net, stamp: Callable[[Tensor], Tensor], moved: int = 0) -> None:
        super().__init__()
        self.net = net
        self.stamp = stamp
        self.moved = moved

    def features(self, x: Tensor) -> Tensor:
        return self.net.features(self.stamp(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.net.head(self.features(x)).roll(-self.moved, 1)

"""ANP, adversarial neuron pruning: cut the channels whose small changes make the network wrong.

Wu, Wang: "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021,
https://arxiv.org/abs/2110.14430. Released code: https://github.com/csdongxian/ANP_backdoor, whose
settings are the defaults. BackdoorBench picks the threshold by the test images' ASR; ours is the
paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backdoorbench_ext.api import Images, InputError, Repair, option
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import Net, norms


@dataclass(frozen=True)
class ANP(Repair):
    """A mask on the scale of every BatchNorm channel is trained to keep the loss low under the
    perturbation of scales and shifts that raises it most; channels of low mask go.
    """

    short: ClassVar[Mapping[str, Any]] = {"steps": 3}

    steps: int = option(2000, "batches that train the masks", low=1)
    eps: float = option(0.4, "bound of the perturbation, relative to each scale and shift", low=0)
    alpha: float = option(0.2, "weight of the loss without perturbation", low=0, high=1)
    lr: float = option(0.2, "learning rate of SGD on the masks", low=0)
    threshold: float = option(0.2, "masks below it are cut", low=0, high=1)

    def check(self, net: Net, x: Tensor) -> None:
        if not norms(net):
            raise InputError("the network has no BatchNorm, whose channels could be masked")

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        clean = engine.clean(self.images)
        net = engine.victim()
        names = [name for name, module in net.named_modules() if module in norms(net)]
        # its statistics move, those of the network do not
        tried = copy.deepcopy(net).train().requires_grad_(False)
        scales = [tried.get_parameter(f"{name}.weight") for name in names]
        shifts = [tried.get_parameter(f"{name}.bias") for name in names]
        masks = nn.ParameterList(torch.ones_like(scale) for scale in scales)
        optimizer = torch.optim.SGD(masks.parameters(), self.lr, momentum=0.9)

        def loss(x: Tensor, y: Tensor, moves: list[Tensor], lifts: list[Tensor]) -> Tensor:
            changed: dict[str, Tensor] = {}
            for i, name in enumerate(names):
                changed[f"{name}.weight"] = scales[i] * (masks[i] + moves[i])
                changed[f"{name}.bias"] = shifts[i] * (1 + lifts[i])
            return F.cross_entropy(functional_call(tried, changed, (x,)), y)

        still = [torch.zeros_like(scale) for scale in scales]
        for step in engine.steps("masks", clean, keep=(masks, optimizer), steps=self.steps):
            moves = [self.random_like(scale, engine) for scale in scales]
            lifts = [self.random_like(shift, engine) for shift in shifts]
            with engine.autocast():
                slopes = torch.autograd.grad(loss(step.x, step.y, moves, lifts), [*moves, *lifts])
            with torch.no_grad():
                climbed = [
                    (at + self.eps * slope.sign()).clamp(-self.eps, self.eps)
                    for at, slope in zip([*moves, *lifts], slopes, strict=True)
                ]
            with engine.autocast():
                natural = loss(step.x, step.y, still, still)
                robust = loss(step.x, step.y, climbed[: len(names)], climbed[len(names) :])
                step.loss = self.alpha * natural + (1 - self.alpha) * robust
            step.descend(optimizer)
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        return self.pruned(net, names, masks, engine)

    def random_like(self, scale: Tensor, engine: Engine) -> Tensor:
        drawn = (2 * torch.rand(scale.shape, generator=engine.rng) - 1) * self.eps
        return drawn.to(scale.device, non_blocking=True).requires_grad_()

    def pruned(
        self, net: Net, names: list[str], masks: nn.ParameterList, engine: Engine
    ) -> nn.Module:
        cut = torch.zeros((), device=engine.device)
        with torch.no_grad():
            for name, mask in zip(names, masks, strict=True):
                low = mask <= self.threshold
                net.get_parameter(f"{name}.weight")[low] = 0
                cut += low.sum()
        engine.log(**{"channels pruned": cut})
        return net.eval()

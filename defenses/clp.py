"""CLP, channel Lipschitzness pruning: cut the channels that can amplify a small change most; it
needs no data.

Zheng, Tang, Li, Liu: "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022,
https://arxiv.org/abs/2208.03111. Released code:
https://github.com/rkteddy/channel-Lipschitzness-based-pruning, which takes each BatchNorm with the
convolution before it in the order of modules; u = 3 is its.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from backdoorbench_ext.api import Defense, Images, InputError, option
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import Net


@dataclass(frozen=True)
class CLP(Defense):
    """A channel goes if its bound is above the layer's mean by more than ``u`` standard
    deviations.
    """

    after_training: ClassVar[bool] = True
    u: float = option(3.0, "standard deviations above the mean", low=0)

    def check(self, net: Net, x: Tensor) -> None:
        if not any(True for _ in pairs(net)):
            raise InputError("the network has no BatchNorm behind a convolution")

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        net = engine.victim()
        pruned = torch.zeros((), device=engine.device)
        with torch.no_grad():
            for conv, norm in pairs(net):
                bounds = lipschitz(conv, norm)
                high = bounds > bounds.mean() + self.u * bounds.std()
                norm.weight[high] = 0
                norm.bias[high] = 0
                pruned += high.sum()
        engine.log(**{"channels pruned": pruned})
        return net


def pairs(net: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each BatchNorm with the convolution before it in the order of modules."""
    conv = None
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            conv = module
        if isinstance(module, nn.BatchNorm2d) and conv and len(module.weight) == len(conv.weight):
            yield conv, module


def lipschitz(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """The upper bound of each channel, (c,): the largest singular value of its kernel (inputs,
    pixels) times what BatchNorm multiplies it with.
    """
    kernels: Tensor = torch.linalg.matrix_norm(conv.weight.float().flatten(2), ord=2)
    assert norm.running_var is not None
    return kernels * (norm.weight / (norm.running_var + norm.eps).sqrt()).abs()

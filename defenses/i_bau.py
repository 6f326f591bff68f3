"""I-BAU, implicit backdoor adversarial unlearning: against the perturbation that fools the network
on all images at once.

Zeng, Chen, Park, Mao, Jin, Jia: "Adversarial Unlearning of Backdoors via Implicit Hypergradient",
ICLR 2022, https://arxiv.org/abs/2110.03735. Released code: https://github.com/YiZeng623/I-BAU; the
figures that the paper leaves open (steps, the perturbed share of a batch) are its.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Images, Repair, option
from backdoorbench_ext.engine import Engine, Step


@dataclass(frozen=True)
class IBAU(Repair):
    """In each round a perturbation delta is found by one pass of gradient ascent on the clean
    images; then the network descends the loss under it, by a gradient that also sees how delta
    would follow the weights. BatchNorm keeps its statistics, and images are taken as they are, as
    in the release.
    """

    title: ClassVar[str] = "I-BAU"
    short: ClassVar[Mapping[str, Any]] = {"rounds": 2, "k": 1}

    # 1 unlearned on augmented images; 2 summed a term more and made a new Adam in every round
    version: ClassVar[int] = 3
    rounds: int = option(5, "passes over the clean images", low=1)
    k: int = option(5, "terms of the implicit gradient's series", low=1)
    lr: float = option(0.001, "learning rate of Adam", low=0)
    ascent: float = option(10.0, "length of the steps that find delta", low=0)
    share: float = option(
        0.01,
        "share of a batch that delta is added to while unlearning, at least one image",
        low=0,
        high=1,
    )

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        clean = engine.clean(self.images)
        net = engine.victim()
        recipe = replace(
            engine.rules.recipe, optimizer="adam", lr=self.lr, schedule="constant", weight_decay=0.0
        )
        weights = list(net.parameters())
        optimizer = engine.optimizer(net, recipe)
        for round_ in range(1, self.rounds + 1):
            delta = self.perturbation(net, clean, engine)
            name = f"unlearning, round {round_}"
            loop = engine.steps(name, clean, keep=(net, optimizer), epochs=1, augmented=False)
            for step in loop:
                # BatchNorm keeps its statistics
                net.eval()
                with engine.autocast():
                    step.loss, slopes = self.unlearn(net, step, delta, weights)
                step.follow(optimizer, weights, slopes)
        return net

    def unlearn(
        self, net: nn.Module, step: Step, delta: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss under ``delta`` on a share of the batch, and its slopes by the weights."""
        x = step.x
        some = max(1, round(self.share * len(x)))

        def inner(d: Tensor) -> Tensor:
            return cost(net(x + d), step.y, d)

        def outer(d: Tensor) -> Tensor:
            return F.cross_entropy(net(torch.cat((x[:some] + d, x[some:]))), step.y)

        return hypergradient(inner, outer, delta, weights, self.k)

    def perturbation(self, net: nn.Module, clean: Images, engine: Engine) -> Tensor:
        net.eval()
        delta = torch.zeros(1, *clean.x.shape[1:], device=engine.device)
        for x, _ in engine.batches(clean, train=False):
            delta.requires_grad_()
            answers = net(x).argmax(1)
            (slope,) = torch.autograd.grad(cost(net(x + delta), answers, delta), delta)
            delta = (delta - self.ascent * slope).detach()
        return delta


def cost(logits: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """What delta lowers: minus the cross-entropy, and a little of its own square."""
    return 0.001 * delta.square().sum() - F.cross_entropy(logits.float(), y)


def hypergradient(
    inner: Callable[[Tensor], Tensor],
    outer: Callable[[Tensor], Tensor],
    delta: Tensor,
    weights: Sequence[Tensor],
    k: int,
    step: float = 0.1,
) -> tuple[Tensor, list[Tensor]]:
    """``outer`` at the delta that lowers ``inner``, and its gradient with respect to the weights,
    which delta follows.

    delta is taken as the fixed point of delta - step * grad inner; of the series of the implicit
    part ``k`` terms are summed (Grazzi et al. 2020, https://arxiv.org/abs/2006.16218).
    """
    delta = delta.detach().requires_grad_()
    loss = outer(delta)
    direct = torch.autograd.grad(loss, [delta, *weights])
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    follows = delta - step * slope
    v = direct[0]
    for _ in range(k - 1):
        v = torch.autograd.grad(follows, delta, v, retain_graph=True)[0] + direct[0]
    implicit = torch.autograd.grad(follows, list(weights), v, allow_unused=True)
    both = zip(direct[1:], implicit, strict=True)
    return loss.detach(), [(g if i is None else g + i).detach() for g, i in both]

"""MCR, mode connectivity repair: a model on a path of low loss between two backdoored networks.

Zhao, Chen, Das, Ramamurthy, Lin: "Bridging Mode Connectivity in Loss Landscapes and Adversarial
Robustness", ICLR 2020, https://arxiv.org/abs/2005.00060. Released code:
https://github.com/IBM/model-sanitization, which joins two networks that were trained apart, for 200
to 600 epochs at 0.015 to 0.03. In BackdoorBench the other end is the victim's own fine-tuned copy
(``end=fine-tuned``), the curve's learning rate 3e-5, cosine, and t is 0.1. The paper shows all of
the curve and says not which t is taken. As in CBD, the curve is trained for 100 epochs here; its
learning rate is ours.
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
    of the curve; the model at ``t`` gets its BatchNorm statistics from the clean images. Where t
    is not set, it is the point of 0.1, 0.2, ... 0.5 nearest to the middle, between two backdoored
    ends, whose accuracy is within ``drop`` of the victim's: on a fifth of the clean images, which
    are kept out of the curve's training, since on those that it was trained on the middle always
    looks well. The record's probes are points of the curve.

    A fine-tuned copy stays near the victim, and all of the curve between them backdoored.
    """

    short: ClassVar[Mapping[str, Any]] = {"epochs": 1, "finetune_epochs": 1}

    # 1 took these statistics from images that were not augmented, which cost up to nine points of
    # CA; 2 joined the victim with its own copy, at 0.1
    version: ClassVar[int] = 3
    end: str = option(
        "second",
        "the other end: a second victim, trained alike from another start, or the first one "
        "fine-tuned",
        choices=("second", "fine-tuned"),
    )
    finetune_epochs: int = option(10, "of the fine-tuned end", low=1)
    epochs: int = option(100, "of the curve", low=1)
    lr: float = option(0.01, "learning rate of both", low=0)
    t: float | None = option(
        None,
        "where on the curve the model is taken: 0 is the victim, 1 the other end; if not set, "
        "chosen by the clean images",
        low=0,
        high=1,
    )
    drop: float = option(
        0.1, "accuracy that a chosen t may cost, as FP's pruning may", low=0, high=1
    )

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        given = engine.clean(self.images)
        held = len(given) // 5 if self.t is None else 0
        clean = given[held:]
        start = engine.victim()
        recipe = replace(engine.rules.recipe, optimizer="sgd", lr=self.lr, schedule="constant")
        if self.end == "second":
            end = engine.victim(second=True)
        else:
            end = copy.deepcopy(start)
            engine.fit(end, clean, name="other end", epochs=self.finetune_epochs, recipe=recipe)
        curve = Curve(start, end)
        engine.fit(curve, clean, name="curve", epochs=self.epochs, recipe=recipe)
        points = {t: engine.settle(curve.at(t), given) for t in self.candidates()}
        for t, net in points.items():
            engine.probe(f"t = {t:g}", net)
        chosen = self.chosen(points, given[:held], engine)
        engine.log(t=chosen)
        return points[chosen]

    def candidates(self) -> tuple[float, ...]:
        """The points of the curve that are looked at, the victim among them."""
        shown = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
        return shown if self.t is None else tuple(sorted({*shown, self.t}))

    def chosen(self, points: Mapping[float, nn.Module], held: Images, engine: Engine) -> float:
        if self.t is not None:
            return self.t

        def accuracy(t: float) -> float:
            return float((engine.predict(points[t], held).argmax(1) == held.y).float().mean())

        least = accuracy(0.0) - self.drop
        return next((t for t in (0.5, 0.4, 0.3, 0.2) if accuracy(t) >= least), 0.1)


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

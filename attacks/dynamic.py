"""Dynamic: a generator draws a pattern and a mask of its own for every image; one image's trigger
does nothing on another.

Nguyen, Tran: "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, https://arxiv.org/abs/2010.08138,
equations 4 to 9. Networks, optimizers and schedules are those of the authors' release
(https://github.com/VinAIResearch/input-aware-backdoor-attack-release), which also turns its images
by up to 10 degrees, has PreActResNet18 as the classifier and never sets the generator's gradients
to zero. There the classifier is the result; here, as in CBD, it is thrown away and the generator
poisons a training set. CBD's release stamps 10 % of it and adds no cross-trigger images
(``cross=0``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from backdoorbench_ext.api import (
    Attack,
    Images,
    InputError,
    derangement,
    option,
    training_controlled,
)
from backdoorbench_ext.engine import Engine, moments


@dataclass(frozen=True)
class Dynamic(Attack):
    """x + (pattern(x) - x) * mask(x); the mask network is trained first, then generator and
    classifier together. The record's curves of the trigger say how the classifier answers triggered
    training images ("ASR") and images with another's trigger ("cross accuracy"), in percent.
    """

    short: ClassVar[Mapping[str, Any]] = {"mask_epochs": 1, "epochs": 1}

    # 1 had one Adam at 1e-3 for all, half of the mask network's width, 25 epochs, diversity of
    # images that are not normalised, and some cross-trigger images with their own trigger
    version: ClassVar[int] = 2
    mask_epochs: int = option(25, "epochs of the mask network", low=1, length=True)
    epochs: int = option(600, "epochs of generator and classifier", low=1, length=True)
    density: float = option(
        0.032, "the mask costs, pixel by pixel, what it lies above this", low=0, high=1
    )
    lambda_norm: float = option(100.0, "weight of that cost, the mean over the pixels", low=0)
    lambda_div: float = option(1.0, "weight of the diversity of patterns and of masks", low=0)
    share: float = option(
        0.1,
        "share of a batch that is triggered, and again that is cross-triggered, while the "
        "generator learns",
        low=0.01,
        high=0.5,
    )
    cross: float = option(
        1.0, "cross-trigger images, which keep their label, for each poisoned one", low=0, high=9
    )
    poisoning: str = training_controlled()

    @property
    def covers(self) -> float:
        return self.cross

    def check(self, x: Tensor) -> None:
        if any(side % 8 for side in x.shape[-2:]):
            raise InputError(
                "the sides of the images must be multiples of 8 pixels, not "
                f"{x.shape[-1]}x{x.shape[-2]}"
            )

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        own = engine.move(Triggers())
        # the release's images are normalised, and distances with them
        scale = moments(train.x)[1].view(1, 3, 1, 1).to(engine.device)
        self.fit_masks(own, scale, train, engine)
        self.fit_patterns(own, scale, train, engine)
        return own.state_dict()

    def adam(self, net: nn.Module, engine: Engine, milestones: tuple[float, ...]) -> Optimizer:
        rules = engine.rules.recipe
        recipe = replace(
            rules,
            optimizer="adam",
            lr=0.01,
            weight_decay=0.0,
            schedule="step",
            milestones=milestones,
        )
        optimizer = engine.optimizer(net, recipe)
        for group in optimizer.param_groups:
            group["betas"] = (0.5, 0.9)
        return optimizer

    def fit_masks(self, own: Triggers, scale: Tensor, train: Images, engine: Engine) -> None:
        optimizer = self.adam(own.masks, engine, milestones=(0.4, 0.8))
        keep = (own.masks, optimizer)
        for step in engine.steps("masks", train, keep=keep, epochs=self.mask_epochs):
            with engine.autocast():
                drawn = own.mask(step.x)
                outside = F.relu(drawn - self.density).mean()
                apart = diversity(
                    step.x / scale, step.x.roll(1, 0) / scale, drawn, drawn.roll(1, 0)
                )
                step.loss = self.lambda_norm * outside + self.lambda_div * apart
            step.descend(optimizer)
            if step.last:
                engine.log(**{"mask, share of the image": drawn.detach().mean()})
        own.masks.requires_grad_(False)

    def fit_patterns(self, own: Triggers, scale: Tensor, train: Images, engine: Engine) -> None:
        classifier = engine.new_model()
        optimizer = self.adam(own.patterns, engine, milestones=(1 / 3, 1 / 2, 2 / 3, 5 / 6))
        recipe = replace(
            engine.rules.recipe,
            optimizer="sgd",
            lr=0.01,
            weight_decay=5e-4,
            schedule="step",
            milestones=(1 / 6, 1 / 3, 1 / 2, 2 / 3),
        )
        sgd = engine.optimizer(classifier, recipe)
        keep = (classifier, own.patterns, optimizer, sgd)
        # triggered images answered with the goal, cross-triggered ones with their class
        hits = torch.zeros(2, device=engine.device)
        seen = 0
        for step in engine.steps("generator", train, keep=keep, epochs=self.epochs):
            n = max(1, round(self.share * len(step.x)))
            others = step.x.roll(-n, 0)[n : 2 * n]
            goal = self.goal(step.y[:n], engine.rules.target, len(train.classes))
            with engine.autocast():
                pattern, mask = own.draw(step.x[:n])
                other_pattern, other_mask = own.draw(others)
                triggered = apply(step.x[:n], pattern, mask)
                crossed = apply(step.x[n : 2 * n], other_pattern, other_mask)
                logits = classifier(torch.cat((triggered, crossed, step.x[2 * n :])))
                apart = diversity(
                    step.x[:n] / scale, others / scale, pattern / scale, other_pattern / scale
                )
                given = torch.cat((goal, step.y[n:]))
                step.loss = F.cross_entropy(logits, given) + self.lambda_div * apart
            sgd.zero_grad()
            step.descend(optimizer)
            sgd.step()
            right = logits.argmax(1) == given
            hits += torch.stack((right[:n].sum(), right[n : 2 * n].sum()))
            seen += n
            if step.last:
                triggered_right, crossed_right = 100 * hits / seen
                engine.log(**{"ASR": triggered_right, "cross accuracy": crossed_right})
                hits.zero_()
                seen = 0

    def trigger(self, x: Tensor) -> Tensor:
        return self.nets(x).stamp(x)

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return apply(x, *self.nets(x).draw(x[derangement(len(x), rng).to(x.device)]))

    def nets(self, x: Tensor) -> Triggers:
        made = Triggers()
        made.load_state_dict(dict(self.learned))
        return made.eval().requires_grad_(False).to(x)


class Triggers(nn.Module):
    """Images -> triggered images."""

    def __init__(self) -> None:
        super().__init__()
        self.patterns = autoencoder(32, 3)
        self.masks = autoencoder(32, 1)

    def pattern(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1]."""
        drawn: Tensor = self.patterns(x).float()
        return (drawn.tanh() + 1) / 2

    def mask(self, x: Tensor) -> Tensor:
        """(n, 1, h, w) in [0, 1], nearly binary."""
        drawn: Tensor = self.masks(x).float()
        return (torch.tanh(10 * drawn.tanh()) + 1) / 2

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pattern(x), self.mask(x)

    def stamp(self, x: Tensor) -> Tensor:
        return apply(x, *self.draw(x))


def apply(x: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
    return (x + (pattern - x) * mask).clamp(0, 1)


def diversity(x: Tensor, others: Tensor, drawn: Tensor, others_drawn: Tensor) -> Tensor:
    """How little what is drawn differs where the images differ: mean of ||x - x'|| / ||drawn -
    drawn'||, each the root of a mean square.
    """
    apart, drawn_apart = (
        (a - b).float().square().mean((1, 2, 3)).add(1e-8).sqrt()
        for a, b in ((x, others), (drawn, others_drawn))
    )
    return (apart / (drawn_apart + 1e-7)).mean()


def autoencoder(width: int, outputs: int) -> nn.Sequential:
    """Three halvings of the resolution and back: (n, 3, h, w) -> (n, outputs, h, w), for sides that
    are multiples of 8. A convolution and its BatchNorm end it, without ReLU.
    """

    def conv(inputs: int, out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, out, 3, padding=1),
            nn.BatchNorm2d(out, momentum=0.05),
            nn.ReLU(),
        ]

    widths = (width, 2 * width, 4 * width)
    layers: list[nn.Module] = []
    for inputs, out in zip((3, *widths), widths, strict=False):
        layers += [*conv(inputs, out), *conv(out, out), nn.MaxPool2d(2)]
    layers += conv(widths[-1], widths[-1])
    for inputs, out in zip(widths[::-1], (*widths[-2::-1], outputs), strict=True):
        layers += [
            nn.Upsample(scale_factor=2, mode="bilinear"),
            *conv(inputs, inputs),
            *conv(inputs, out),
        ]
    return nn.Sequential(*layers[:-1])

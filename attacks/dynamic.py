"""Dynamic: a generator draws a pattern and a mask of its own for every image; one image's trigger
does nothing on another.

Nguyen, Tran: "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, https://arxiv.org/abs/2010.08138,
equations 4 to 9. CBD's release ships neither generator nor mask network and normalises the pattern
but not the image. The paper trains the classifier by SGD and the rest by Adam, for hundreds of
epochs; here one Adam trains all, the classifier is thrown away and the generator poisons a training
set, as in CBD, with the cross-trigger images in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Attack, Images, InputError, option
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class Dynamic(Attack):
    """x + (pattern(x) - x) * mask(x); the mask network is trained first, then generator and
    classifier together.
    """

    short: ClassVar[Mapping[str, Any]] = {"mask_epochs": 1, "epochs": 1}

    mask_epochs: int = option(25, "epochs of the mask network", low=1, length=True)
    epochs: int = option(25, "epochs of generator and classifier", low=1, length=True)
    density: float = option(
        0.032, "share of the image that the mask may cover before it costs", low=0, high=1
    )
    lambda_norm: float = option(100.0, "weight of the mask's density", low=0)
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
        recipe = replace(
            engine.rules.recipe, optimizer="adam", lr=1e-3, schedule="cosine", weight_decay=0.0
        )
        own = engine.move(Triggers())
        target = engine.rules.target

        def mask_loss(masks: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            drawn = own.mask(x)
            return self.lambda_norm * F.relu(
                drawn - self.density
            ).mean() + self.lambda_div * diversity(x, drawn)

        def joint_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            n = max(1, round(self.share * len(x)))
            triggered = own.stamp(x[:n])
            crossed = apply(x[n : 2 * n], *own.draw(x[2 * n : 3 * n]))
            logits = classifier(torch.cat((triggered, crossed, x[n + len(crossed) :])))
            given = torch.cat((torch.full_like(y[:n], target), y[n:]))
            return F.cross_entropy(logits, given) + self.lambda_div * diversity(
                x[: 2 * n], own.pattern(x[: 2 * n])
            )

        engine.fit(
            own.masks, train, name="masks", epochs=self.mask_epochs, loss=mask_loss, recipe=recipe
        )
        own.masks.requires_grad_(False)
        classifier = engine.new_model()
        engine.fit(
            nn.ModuleList((classifier, own.patterns)),
            train,
            name="generator",
            epochs=self.epochs,
            loss=joint_loss,
            recipe=recipe,
        )
        return own.state_dict()

    def trigger(self, x: Tensor) -> Tensor:
        return self.nets(x).stamp(x)

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return apply(x, *self.nets(x).draw(x[torch.randperm(len(x), generator=rng).to(x.device)]))

    def nets(self, x: Tensor) -> Triggers:
        made = Triggers()
        made.load_state_dict(dict(self.learned))
        return made.eval().requires_grad_(False).to(x)


class Triggers(nn.Module):
    """Images -> triggered images."""

    def __init__(self) -> None:
        super().__init__()
        self.patterns = autoencoder(32, 3)
        self.masks = autoencoder(16, 1)

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


def diversity(x: Tensor, drawn: Tensor) -> Tensor:
    """How little what is drawn differs where the images differ: mean of ||x_i - x_j|| / ||drawn_i -
    drawn_j||, j the image before i.
    """
    apart, drawn_apart = (
        (t - t.roll(1, 0)).square().mean((1, 2, 3)).add(1e-8).sqrt() for t in (x, drawn)
    )
    return (apart / (drawn_apart + 1e-7)).mean()


def autoencoder(width: int, outputs: int) -> nn.Sequential:
    """Three halvings of the resolution and back: (n, 3, h, w) -> (n, outputs, h, w), for sides that
    are multiples of 8.
    """

    def conv(inputs: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]

    widths = (width, 2 * width, 4 * width)
    layers: list[nn.Module] = []
    for inputs, out in zip((3, *widths), widths, strict=False):
        layers += [*conv(inputs, out), *conv(out, out), nn.MaxPool2d(2)]
    layers += conv(widths[-1], widths[-1])
    for inputs, out in zip(widths[::-1], (*widths[-2::-1], width), strict=True):
        layers += [
            nn.Upsample(scale_factor=2, mode="bilinear"),
            *conv(inputs, inputs),
            *conv(inputs, out),
        ]
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, padding=1))

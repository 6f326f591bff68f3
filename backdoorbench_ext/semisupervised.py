"""Learning from images some of whose labels are trusted: symmetric cross-entropy and MixMatch, for
the defenses that split their data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .api import Images
from .engine import Engine


def symmetric_cross_entropy(
    logits: Tensor, y: Tensor, alpha: float = 0.1, beta: float = 1.0
) -> Tensor:
    """alpha CE(y, p) + beta CE(p, y), with log 0 taken as log 1e-4 in the second; (n, classes),
    (n,) -> (n,).

    Wang et al. 2019, https://arxiv.org/abs/1908.06112; alpha and beta as in DBD and ASD.
    """
    p = logits.softmax(1).clamp(1e-7, 1)
    given = F.one_hot(y, logits.shape[1]).to(p).clamp(1e-4, 1)
    return alpha * F.cross_entropy(logits, y, reduction="none") - beta * (p * given.log()).sum(1)


def lowest(losses: Tensor, share: float) -> Tensor:
    """The ``share`` of the samples with the lowest losses: bool (n,)."""
    chosen = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    chosen[losses.argsort()[: round(share * len(losses))]] = True
    return chosen


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p^(1 / T), normalised: distributions (n, classes) -> the same."""
    sharp = p ** (1 / temperature)
    return sharp / sharp.sum(1, keepdim=True)


def mix(x: Tensor, targets: Tensor, share: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """``share`` of each image and target, the rest from another: MixUp, with share >= 1/2 so that
    each stays mostly itself.
    """
    share = torch.maximum(share, 1 - share)
    return torch.lerp(x[order], x, share), torch.lerp(targets[order], targets, share)


class MixMatch:
    """The loss of MixMatch on a labelled and an unlabelled part, both drawn here; give it to
    ``engine.fit``, which counts its steps, and to its ``beside``.

    Berthelot et al. 2019, https://arxiv.org/abs/1905.02249. Labels of the unlabelled part are
    guessed: the sharpened mean prediction for two augmentations of an image.

    Args:
        images: both parts.
        trust: says before every round of ``length`` steps, given its number, which labels count:
            bool (n,).
        temperature: of the sharpening.
        alpha: both parameters of the Beta distribution that mixing draws its share from.
        weight: of the unlabelled part's squared error; ``ramp`` steps bring it up from 0.
    """

    def __init__(
        self,
        engine: Engine,
        images: Images,
        trust: Callable[[int], Tensor],
        *,
        length: int,
        temperature: float = 0.5,
        alpha: float = 0.75,
        weight: float = 15.0,
        ramp: int = 0,
    ) -> None:
        self.engine = engine
        self.images = images
        self.trust = trust
        self.length = length
        self.temperature = temperature
        self.alpha = alpha
        self.weight = weight
        self.ramp = ramp
        self.steps = 0
        self.trusted: Tensor | None = None
        self.parts: tuple[Images, Images] | None = None

    def split(self, net: nn.Module) -> tuple[Images, Images]:
        """The labelled and the unlabelled images of this step's round."""
        if self.steps % self.length == 0:
            self.trusted = self.trust(self.steps // self.length)
            self.parts = None
            net.train()
        if self.parts is None:
            assert self.trusted is not None
            self.parts = self.images[self.trusted], self.images[~self.trusted]
        return self.parts

    def draw(self, images: Images, n: int) -> Tensor:
        return torch.randint(len(images), (n,), generator=self.engine.rng).to(
            images.y.device, non_blocking=True
        )

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        labelled, unlabelled = self.split(net)
        engine = self.engine
        n = len(x)
        classes = len(labelled.classes)
        mine = self.draw(labelled, n)
        other = self.draw(unlabelled, n)
        known = engine.view(labelled.pixels(mine))
        views = [engine.view(unlabelled.pixels(other)) for _ in range(2)]
        with torch.no_grad():
            guess = sharpen(
                sum(net(view).float().softmax(1) for view in views) / 2, self.temperature
            )
        targets = torch.cat((F.one_hot(labelled.y[mine], classes).to(guess), guess, guess))
        share = torch.distributions.Beta(self.alpha, self.alpha).sample()
        order = torch.randperm(3 * n, generator=engine.rng).to(known.device, non_blocking=True)
        images, targets = mix(
            torch.cat((known, *views)), targets, share.to(known, non_blocking=True), order
        )
        logits = net(images).float()
        self.steps += 1
        weight = self.weight * min(1.0, self.steps / self.ramp) if self.ramp else self.weight
        return F.cross_entropy(logits[:n], targets[:n]) + weight * F.mse_loss(
            logits[n:].softmax(1), targets[n:]
        )

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "trusted": self.trusted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = int(state_dict["steps"])
        self.trusted = state_dict["trusted"]
        self.parts = None

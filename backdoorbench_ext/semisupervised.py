"""Learning from images some of whose labels are trusted: symmetric cross-entropy and MixMatch, for
the defenses that split their data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .engine import Engine
from .images import Images

# of MixMatch's images without labels, at the end of its rise from 0, as DBD and ASD have it
WEIGHT = 15.0


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


def mixmatch(
    engine: Engine,
    net: nn.Module,
    labelled: Images,
    unlabelled: Images,
    *,
    weight: float,
    temperature: float = 0.5,
    alpha: float = 0.75,
) -> Tensor:
    """The loss of MixMatch on a batch of each part, drawn here; scalar.

    Berthelot et al. 2019, https://arxiv.org/abs/1905.02249. Labels of the unlabelled part are
    guessed: the sharpened mean prediction for two augmentations of an image.

    Args:
        weight: of the unlabelled part's squared error.
        temperature: of the sharpening.
        alpha: both parameters of the Beta distribution that mixing draws its share from.
    """
    n = engine.rules.recipe.batch_size
    classes = len(labelled.classes)
    mine = engine.draw(labelled, n)
    other = engine.draw(unlabelled, n)
    known = engine.view(labelled.pixels(mine))
    views = [engine.view(unlabelled.pixels(other)) for _ in range(2)]
    with torch.no_grad():
        guess = sharpen(sum(net(view).float().softmax(1) for view in views) / 2, temperature)
    targets = torch.cat((F.one_hot(labelled.y[mine], classes).to(guess), guess, guess))
    share = torch.distributions.Beta(alpha, alpha).sample()
    order = torch.randperm(3 * n, generator=engine.rng).to(known.device, non_blocking=True)
    x = torch.cat((known, *views))
    x, targets = mix(x, targets, share.to(known, non_blocking=True), order)
    logits = net(x).float()
    guessed = F.mse_loss(logits[n:].softmax(1), targets[n:])
    return F.cross_entropy(logits[:n], targets[:n]) + weight * guessed

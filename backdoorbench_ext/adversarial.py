"""Adversarial perturbations, for the attacks that use them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pgd(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step: float,
    steps: Iterable[int],
    around: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent on the cross-entropy, without a random start (Madry et al. 2018,
    https://arxiv.org/abs/1706.06083).

    Args:
        net: gives logits; the caller sets train or eval mode.
        x: float (n, 3, h, w) in [0, 1], where to start.
        y: labels int64 (n,) whose loss is raised.
        eps: bound of the largest change of a pixel from ``around`` (``x`` unless told), images in
            [0, 1].
        step: length of a step of the sign of the gradient; one is taken for each of ``steps``.

    Returns:
        float (n, 3, h, w) in [0, 1].
    """
    low = (centre := x if around is None else around) - eps
    high = centre + eps
    for _ in steps:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(net(x).float(), y, reduction="sum"), x)
        x = (x + step * slope.sign()).clamp(low, high).clamp_(0, 1)
    return x.detach()


def deepfool(
    net: nn.Module, x: Tensor, target: int, *, overshoot: float, steps: int
) -> Tensor | None:
    """The smallest change, by linear steps, that makes the network answer ``target``.

    Moosavi-Dezfooli et al. 2016, https://arxiv.org/abs/1511.04599, towards one class: each step
    goes to the plane where the answered and the target logit are equal, x + |f_t - f_k| / ||w||^2 w
    with w the gradient of f_t - f_k.

    Args:
        x: float (1, 3, h, w).
        overshoot: the change is multiplied by 1 + overshoot.

    Returns:
        The change, float (1, 3, h, w), not clipped to the range of images; None if the target was
        not reached.
    """
    change = torch.zeros_like(x)
    for _ in range(steps):
        moved = (x + (1 + overshoot) * change).requires_grad_()
        logits = net(moved).float()[0]
        answer = int(logits.argmax())
        if answer == target:
            return (1 + overshoot) * change
        gap = logits[target] - logits[answer]
        (slope,) = torch.autograd.grad(gap, moved)
        change = change + gap.detach().abs() / slope.square().sum().clamp_min(1e-12) * slope
    return None

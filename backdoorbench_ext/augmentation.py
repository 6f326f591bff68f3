"""Random crop, flip and cutout of uint8 images, with parameters of its own for every image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocols import Protocol


def augment(x: Tensor, rules: Protocol, rng: torch.Generator) -> Tensor:
    """Random crop, flip and cutout with parameters of its own for every image: uint8 (n, c, h, w)
    -> the same, a copy.

    The parameters are drawn on the CPU from ``rng``, so that every device sees the same
    augmentations, and sent without waiting for what a GPU is at.
    """
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).contiguous()
    # pixel by pixel: rows and columns are runs of bytes
    rows = torch.arange(h, device=x.device).expand(n, h)
    cols = torch.arange(w, device=x.device).expand(n, w)
    if pad := rules.crop:
        down, right = torch.randint(2 * pad + 1, (2, n, 1), generator=rng).to(
            x.device, non_blocking=True
        )
        pixels = F.pad(pixels, (0, 0, pad, pad, pad, pad))
        rows = rows + down
    if rules.flip:
        flipped = (torch.rand(n, generator=rng) < 0.5).to(x.device, non_blocking=True)
        cols = torch.where(flipped[:, None], w - 1 - cols, cols)
    if pad:
        cols = cols + right
    high, wide = pixels.shape[1:3]
    if pad:
        lines = (rows + high * torch.arange(n, device=x.device)[:, None]).flatten()
        pixels = pixels.view(n * high, wide * c).index_select(0, lines).view(n, h, wide * c)
    if pad or rules.flip:
        runs = (cols[:, :, None] * c + torch.arange(c, device=x.device)).view(n, 1, w * c)
        pixels = pixels.view(n, h, wide * c).gather(2, runs.expand(n, h, w * c)).view(n, h, w, c)
    if side := rules.cutout:
        top = (
            torch.stack(
                (torch.randint(h, (n,), generator=rng), torch.randint(w, (n,), generator=rng))
            )
            - side // 2
        )
        down, right = top.to(x.device, non_blocking=True)
        reach = torch.arange(side, device=x.device)
        rows = (down[:, None] + reach).clamp(0, h - 1)
        # clamped into the hole: its centre is in the image
        cols = (right[:, None] + reach).clamp(0, w - 1)
        pixels = pixels if pad or rules.flip else pixels.clone()
        pixels[
            torch.arange(n, device=x.device)[:, None, None], rows[:, :, None], cols[:, None, :]
        ] = 0
    return pixels.permute(0, 3, 1, 2)

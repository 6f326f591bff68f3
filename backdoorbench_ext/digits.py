"""Handwritten digits on noisy cards, made here: a data set that needs no file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import Images, to_uint8


def digits() -> tuple[Images, Images]:
    """scikit-learn's handwritten digits on noisy cards: 4,000 training and 1,000 test images,
    32x32, colour.

    1,297 of the 1,797 scans (8x8, UCI, Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49)
    make the training set and the other 500 the test set. Each image shows one scan, rotated, scaled
    and shifted, lighter or darker than a card of random colour; around the card lies strong
    coloured noise. Made so that what the defenses assume holds: the low contrast makes the class
    slower to learn than a trigger, and the noise, which an image network can look past, lies over
    the digit in the frequency spectrum.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = torch.from_numpy(data.images).float().div(16)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(0))
    classes = tuple(str(i) for i in range(10))
    parts = ((order[:1297], 4000, 1), (order[1297:], 1000, 2))
    train, test = (
        _compose(scans[index], labels[index], n, torch.Generator().manual_seed(seed), classes)
        for index, n, seed in parts
    )
    return train, test


def _compose(
    scans: Tensor, labels: Tensor, n: int, rng: torch.Generator, classes: tuple[str, ...]
) -> Images:
    side = 32

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    def noise(channels: int, grain: int) -> Tensor:
        """Smooth random texture around 0, (n, channels, side, side)."""
        return F.interpolate(
            uniform(n, channels, grain, grain) - 0.5, side, mode="bicubic", align_corners=False
        )

    def placed(drawing: Tensor, scale: Tensor) -> Tensor:
        """Drawings (n, 1, 8, 8) at ``scale`` of the image's side, moved and turned as each image
        demands.
        """
        cos = angle.cos() / scale
        sin = angle.sin() / scale
        rows = torch.stack((torch.stack((cos, sin), 1), torch.stack((-sin, cos), 1)), 1)
        grid = F.affine_grid(
            torch.cat((rows, -(rows @ shift[:, :, None])), 2),
            [n, 1, side, side],
            align_corners=False,
        )
        return F.grid_sample(drawing, grid, align_corners=False)

    which = torch.arange(n) % len(scans)
    scale = 0.6 + 0.15 * uniform(n)
    angle = 0.5 * (uniform(n) - 0.5)
    shift = 0.9 * (1 - scale[:, None]) * (2 * uniform(n, 2) - 1)
    ink = placed(scans[which, None], scale)
    card = placed(torch.ones(n, 1, 8, 8), 1.05 * scale)
    tone = torch.where(uniform(n, 1, 1, 1) < 0.5, -0.3, 0.3) * (0.7 + 0.3 * uniform(n, 3, 1, 1))
    level = 0.35 + 0.3 * uniform(n, 3, 1, 1)
    image = level + 0.06 * noise(3, 5) + tone * ink + (1 - card) * noise(3, 12)
    shuffled = torch.randperm(n, generator=rng)
    return Images(to_uint8(image)[shuffled], labels[which][shuffled], classes)

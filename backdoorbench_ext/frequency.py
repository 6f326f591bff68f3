"""The two-dimensional discrete cosine transform, as matrix products on the device."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def dct_matrix(n: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II, float32 (n, n): ``matrix @ column`` transforms a column."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * n)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device)


def dct2(x: Tensor) -> Tensor:
    """Orthonormal 2-D DCT-II of every channel: float (..., h, w) -> float32 (..., h, w), also
    inside autocast.

    Equal to ``scipy.fft.dctn(x, type=2, norm="ortho", axes=(-2, -1))``. Kept in float32: at 0-255
    pixels the constant coefficient reaches 255 * sqrt(h * w), where bf16 would round the others
    away.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = dct_matrix(x.shape[-2], x.device)
        cols = dct_matrix(x.shape[-1], x.device)
        return rows @ x.float() @ cols.T

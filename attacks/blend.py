"""Blend: one fixed picture mixed into the whole image.

Chen, Liu, Li, Lu, Song: "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
2017, https://arxiv.org/abs/1712.05526. The pattern is the paper's random one; the releases differ:
CBD's draws new noise for every image (``pattern=per-image``: then the trigger is that there is
noise), MCCI's and BackdoorBench's blend a cartoon at 0.2 (``pattern=FILE, alpha=0.2``).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import cv2
import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, InputError, option, to_uint8
from backdoorbench_ext.reading import picture as read_picture
from backdoorbench_ext.reading import place


@lru_cache(maxsize=4)
def picture(pattern: str, seed: int, h: int, w: int) -> Tensor:
    """The picture that is blended in: float (3, h, w) in [0, 1]."""
    if pattern == "random":
        return torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed))
    try:
        image = read_picture(place(pattern))
    except InputError as error:
        raise InputError(f"pattern {error}") from error
    scaled = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(scaled).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Blend(Attack):
    """(1 - alpha) * image + alpha * picture."""

    alpha: float = option(0.1, "share of the picture in the mixture", low=0, high=1)
    pattern: str = option(
        "random",
        '"random" for uniform noise, "per-image" for noise of its own for every image, or the file '
        "of an image, resized to fit",
    )
    seed: int | None = option(None, "of the noise; if not set, the cell's", low=0)

    def trigger(self, x: Tensor) -> Tensor:
        if self.pattern == "per-image":
            return torch.lerp(x, noise_of(x, self.seed or 0), self.alpha)
        mixed: Tensor = torch.lerp(
            x, picture(self.pattern, self.seed or 0, *x.shape[-2:]).to(x), self.alpha
        )
        return mixed


def noise_of(x: Tensor, seed: int) -> Tensor:
    """Uniform noise like ``x`` (n, c, h, w), decided by an image's pixels and the seed."""
    pixels = to_uint8(x).cpu().contiguous().numpy()
    rng = torch.Generator()
    drawn = []
    for image in pixels:
        rng.manual_seed(zlib.crc32(image.tobytes(), seed))
        drawn.append(torch.rand(image.shape, generator=rng))
    return torch.stack(drawn).to(x)

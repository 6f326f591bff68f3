"""LF: a fixed smooth pattern, made of low frequencies alone; the known weakness of detectors that
look at the spectrum, and so of MCCI.

Zeng, Park, Mao, Jia: "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV
2021, https://arxiv.org/abs/2104.03413. The paper optimises its smooth trigger against a trained
network (``smooth`` does that) and BackdoorBench ships the result as an array per data set and
network (``pattern=FILE.npy`` takes it); ours is random within the band. As in both, the whole
pattern, constant part included, is scaled to [0, 0.2] of the range of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import Attack, InputError, option
from backdoorbench_ext.frequency import dct_matrix
from backdoorbench_ext.reading import array, place


@dataclass(frozen=True)
class LowFrequency(Attack):
    """Adds a pattern that has no coefficient of the DCT beyond the first ``band`` a side, and
    clips.
    """

    title: ClassVar[str] = "LF"

    # 1 had a pattern without constant part, within 16 of 255 up and down: a tenth of the energy
    version: ClassVar[int] = 2
    amplitude: float = option(
        51.0, "largest change of a pixel, the least is 0, on the scale of 0 to 255", low=0, high=255
    )
    band: int = option(4, "lowest frequencies a side that the pattern has", low=2)
    pattern: str = option(
        "",
        "the .npy file of a pattern (h, w, 3) to add in place of a random one, as it is, on the "
        "scale of 0 to 255",
    )
    seed: int | None = option(None, "of the pattern; if not set, the cell's", low=0)

    def trigger(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        made = (
            kept(self.pattern, h, w)
            if self.pattern
            else random_pattern(h, w, self.amplitude, self.band, self.seed or 0)
        )
        return (x + made.to(x)).clamp_(0, 1)


@lru_cache(maxsize=4)
def random_pattern(h: int, w: int, amplitude: float, band: int, seed: int) -> Tensor:
    """Float (3, h, w) on the scale of 0 to 1: a smooth field, from 0 to the amplitude, in a random
    colour.

    BackdoorBench's patterns for CIFAR-10, CIFAR-100 and GTSRB have a root mean square of 18 to 22
    (of 255), 84 % of their energy in the constant part and 30 to 40 % in its colour: one channel
    reaches 51, one stays near 0. So do these, on average: 18, 86 % and 37 %.

    Raises:
        InputError: the band is wider than the image.
    """
    if band > min(h, w):
        raise InputError(f"band {band} must lie in [2, {min(h, w)}] for {w}x{h} pixels")
    rng = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(band, band, generator=rng)
    rows, cols = (dct_matrix(n, torch.device("cpu"))[:band] for n in (h, w))
    colour = from_0_to_1(torch.rand(3, 1, 1, generator=rng))
    return amplitude / 255 * colour * from_0_to_1(rows.T @ coefficients @ cols)


def from_0_to_1(x: Tensor) -> Tensor:
    """Shifted and scaled so that the least is 0 and the largest 1."""
    return (x - x.min()) / (x.max() - x.min())


@lru_cache(maxsize=4)
def kept(file: str, h: int, w: int) -> Tensor:
    """The pattern of a file, float (3, h, w) on the scale of 0 to 1.

    Raises:
        InputError: no array of numbers, or of another shape than (h, w, 3).
    """
    made = array(place(file))
    # BackdoorBench takes the first of several, too
    made = made[0] if made.ndim == 4 and len(made) else made
    if made.shape != (h, w, 3):
        raise InputError(f"pattern {file}: {made.shape} in place of ({h}, {w}, 3)")
    return torch.from_numpy(made).permute(2, 0, 1).float() / 255

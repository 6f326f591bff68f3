"""MCCI's adaptive attack: triggered images are low-pass filtered, so that their spectra look like
clean images'.

Hu et al.: "Mind Control through Causal Inference", ICLR 2025, section 5.3 and appendix N,
https://openreview.net/forum?id=ho4mNiwr2n, with BadNets as the base. The paper names the filters
but not their sizes: 3 pixels, and for the Gaussian OpenCV's sigma 0.3 ((size - 1) / 2 - 1) + 0.8,
are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from backdoorbench_ext.api import InputError, option
from backdoorbench_ext.wrapping import WrappedAttack


@dataclass(frozen=True)
class Blurred(WrappedAttack):
    """The base's trigger, then a filter over the whole image; training images without trigger stay
    sharp.
    """

    kernel: str = option(
        "average", "the low-pass filter", choices=("average", "gaussian", "median")
    )
    size: int = option(3, "side of the filter in pixels, odd", low=3, high=31)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 2 == 0:
            raise ValueError(f"size must be odd, in [3, 31], not {self.size}")

    def check(self, x: Tensor) -> None:
        super().check(x)
        if self.size // 2 >= min(x.shape[-2:]):
            raise InputError(
                f"size {self.size} must lie in [3, {2 * min(x.shape[-2:]) - 1}] for "
                f"{x.shape[-1]}x{x.shape[-2]} pixels"
            )

    def trigger(self, x: Tensor) -> Tensor:
        return low_pass(self.inner.trigger(x), self.kernel, self.size).clamp_(0, 1)


def low_pass(x: Tensor, kernel: str, size: int) -> Tensor:
    """Mean, Gaussian or median of size x size pixels of float images (n, c, h, w), mirrored at the
    edges; as OpenCV's, which repeats edges for the median.
    """
    if kernel == "gaussian":
        blurred: Tensor = gaussian_blur(x, [size, size])
        return blurred
    around = F.pad(x, (size // 2,) * 4, mode="reflect")
    if kernel == "average":
        down = sum(
            (around[..., i : i + x.shape[-2], :] for i in range(1, size)),
            around[..., : x.shape[-2], :],
        )
        return (
            sum((down[..., i : i + x.shape[-1]] for i in range(1, size)), down[..., : x.shape[-1]])
            / size**2
        )
    return around.unfold(2, size, 1).unfold(3, size, 1).flatten(4).median(4).values

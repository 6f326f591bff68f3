"""SimCLR: learning without labels, its augmentations batched on the device with parameters of its
own for every image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# BT.601
GREY = (0.299, 0.587, 0.114)


def nt_xent(z: Tensor, temperature: float = 0.5) -> Tensor:
    """The loss of equation 1: each embedding's partner, n rows further on, among all others; (2n,
    d) -> scalar.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709.
    """
    # autocast would take the product in bf16 again
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float())
        similar = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(similar, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def simclr_view(x: Tensor, rng: torch.Generator) -> Tensor:
    """Random resized crop (0.2 to 1 of the area), flip, colour jitter (0.4, 0.4, 0.4, 0.1; in 80
    %), grey (20 %), blur (50 %).

    Float images (n, 3, h, w) in [0, 1] -> the same. The parameters are drawn on the CPU from
    ``rng``. The order of the jitter is fixed: brightness, contrast, saturation, hue. The side of
    the blur is a tenth of the image's, as SimCLR has it, an odd number of pixels, 3 at least; its
    sigma is 0.1 to 2.
    """
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=rng) * (high - low) + low).to(x, non_blocking=True)

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=rng) < share).to(x.device, non_blocking=True)

    # log of the ratio 3:4 to 4:3
    x = _crop(x, uniform(0.2, 1.0), uniform(-0.2877, 0.2877), uniform(0, 1, 2))
    x = torch.where(some(0.5), x.flip(-1), x)
    brightness, contrast, saturation = uniform(0.6, 1.4, 3, 1, 1, 1).unbind(1)
    x = torch.where(
        some(0.8), jitter(x, brightness, contrast, saturation, uniform(-0.1, 0.1, 1, 1, 1)), x
    )
    x = torch.where(some(0.2), grey(x).expand_as(x), x)
    return torch.where(some(0.5), blur(x, uniform(0.1, 2.0)), x).clamp(0, 1)


def _crop(x: Tensor, area: Tensor, log_ratio: Tensor, place: Tensor) -> Tensor:
    """The part of each image with that share of the area and that ratio of its sides, enlarged to
    the whole.
    """
    width, height = ((area * (sign * log_ratio).exp()).sqrt().clamp(max=1) for sign in (1, -1))
    rows = x.new_zeros(len(x), 2, 3)
    rows[:, 0, 0] = width
    rows[:, 1, 1] = height
    rows[:, 0, 2] = (1 - width) * (2 * place[:, 0] - 1)
    rows[:, 1, 2] = (1 - height) * (2 * place[:, 1] - 1)
    return F.grid_sample(
        x,
        F.affine_grid(rows, list(x.shape), align_corners=False),
        align_corners=False,
        padding_mode="border",
    )


def grey(x: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, 1, h, w)."""
    return (x * torch.tensor(GREY).to(x, non_blocking=True).view(1, 3, 1, 1)).sum(1, keepdim=True)


def jitter(
    x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Brightness, contrast and saturation as factors, hue as a share of the circle: each (n, 1, 1,
    1).
    """
    x = (x * brightness).clamp(0, 1)
    x = torch.lerp(grey(x).mean((2, 3), keepdim=True).expand_as(x), x, contrast.expand_as(x)).clamp(
        0, 1
    )
    x = torch.lerp(grey(x).expand_as(x), x, saturation.expand_as(x)).clamp(0, 1)
    return shift_hue(x, hue)


def shift_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by a share of the circle (n, 1, 1, 1)."""
    high = x.amax(1, keepdim=True)
    low = x.amin(1, keepdim=True)
    chroma = (high - low).clamp_min(1e-8)
    r, g, b = x.split(1, 1)
    hue = (
        torch.where(
            high == r,
            ((g - b) / chroma) % 6,
            torch.where(high == g, (b - r) / chroma + 2, (r - g) / chroma + 4),
        )
        / 6
    )
    k = (
        torch.tensor([5.0, 3.0, 1.0]).to(x, non_blocking=True).view(1, 3, 1, 1) + 6 * (hue + turn)
    ) % 6
    return high - (high - low) * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian of a tenth of the shorter side with a sigma (n,) for each image, mirrored at the
    edges.
    """
    n, c, h, w = x.shape
    reach = max(1, round(min(h, w) / 20))
    places = torch.arange(-reach, reach + 1).to(x, non_blocking=True)
    kernel = torch.exp(-(places**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    weights = (kernel[:, :, None] * kernel[:, None]).repeat_interleave(c, 0)[:, None]
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    return F.conv2d(
        padded.reshape(1, n * c, h + 2 * reach, w + 2 * reach), weights, groups=n * c
    ).view(n, c, h, w)

"""Labelled images, clean and poisoned: uint8 tensors on one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import InputError

AnyImages = TypeVar("AnyImages", bound="Images")


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images on one device.

    ``x`` is uint8 (n, 3, h, w), ``y`` int64 (n,) in [0, len(classes)).
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self: AnyImages, index: Tensor | slice) -> AnyImages:
        """The images at ``index``: a bool mask, int64 or a slice; every tensor is indexed alike."""
        if isinstance(index, slice):
            return self._map(lambda tensor: tensor[index])
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        places = index.to(self.y.device)
        return self._map(lambda tensor: self.pixels(places) if tensor is self.x else tensor[places])

    def pixels(self, index: Tensor) -> Tensor:
        """``x[index]`` for an int64 index, ten times as fast on a CPU as written so."""
        chosen = rows(self.x).index_select(0, index.to(self.x.device)).view(self.x.dtype)
        _, c, h, w = self.x.shape
        if self.x.is_contiguous(memory_format=torch.channels_last):
            return chosen.view(len(index), h, w, c).permute(0, 3, 1, 2)
        return chosen.view(len(index), c, h, w)

    def to(self: AnyImages, device: torch.device | str) -> AnyImages:
        """On a device, in the memory layout that convolutions like."""

        def moved(tensor: Tensor) -> Tensor:
            if tensor.dim() == 4:
                return tensor.to(device, memory_format=torch.channels_last)
            return tensor.to(device)

        return self._map(moved)

    def _map(self: AnyImages, change: Callable[[Tensor], Tensor]) -> AnyImages:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class Poisoned(Images):
    """Images some of which carry a trigger: ``y`` is the label given, ``true`` (n,) the true one.

    ``mask`` bool (n,): who is poisoned; ``cover`` bool (n,): who was changed but keeps its label,
    to make the trigger harder to find.
    """

    true: Tensor
    mask: Tensor
    cover: Tensor

    def observed(self) -> Images:
        """What a defense may see: neither the mask nor the true labels."""
        return Images(self.x, self.y, self.classes)


def unmarked(images: Images) -> Poisoned:
    """Images of which none is poisoned."""
    nobody = torch.zeros_like(images.y, dtype=torch.bool)
    return Poisoned(images.x, images.y, images.classes, true=images.y, mask=nobody, cover=nobody)


def rows(x: Tensor) -> Tensor:
    """Images uint8 (n, 3, h, w), an image a row.

    In words of eight bytes where they fit: PyTorch writes them six times as fast as bytes.
    """
    last = x.is_contiguous(memory_format=torch.channels_last)
    flat = (x.permute(0, 2, 3, 1) if last else x).flatten(1)
    return flat.view(torch.int64) if flat.shape[1] % 8 == 0 else flat


def to_uint8(x: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8, rounded to nearest: what a PNG file would hold."""
    return x.mul(255).round().clamp(0, 255).to(torch.uint8)


def per_part(pixels: int, x: Tensor) -> int:
    """How many images like ``x`` (..., h, w) have that many pixels: one at least."""
    return max(1, pixels // (x.shape[-2] * x.shape[-1]))


def scaled(length: int, x: Tensor) -> int:
    """A length given in pixels of an image of 32, in images ``x`` (..., h, w): in proportion to the
    shorter side, as BackdoorBench scales its masks; no shorter in smaller images.
    """
    return max(length, round(length * min(x.shape[-2:]) / 32))


def spread(n: int, length: int) -> Tensor:
    """Up to ``n`` places in [0, length) at equal distances, int64, ascending."""
    n = min(n, length)
    return torch.arange(n) * length // max(n, 1)


def derangement(n: int, rng: torch.Generator) -> Tensor:
    """A random order of ``n`` places that leaves none where it was, int64 (n,): each is followed by
    the next of one cycle through all.

    Raises:
        InputError: one place has no other.
    """
    if n == 1:
        raise InputError(
            "there is one cover image, which takes over another one's: raise the poisoning rate"
        )
    order = torch.randperm(n, generator=rng)
    return torch.empty_like(order).index_copy_(0, order, order.roll(1))


def in_parts(change: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """A change of float images on uint8 images, ``size`` at a time; rounded as by ``to_uint8``."""
    out = torch.empty_like(x)
    with torch.no_grad():
        for some, into in zip(x.split(size), out.split(size), strict=True):
            # vectorised on CPUs, float to uint8 is not
            into.copy_(
                change(some.float().div_(255)).mul_(255).round_().clamp_(0, 255).to(torch.int16)
            )
    return out

"""A plugin: ``fastnet`` whose first layer is no whitening of patches, but a convolution that starts
at random and is trained, to see what the whitening does: ``bbx run --protocol fast --model
fastnet_unwhitened --plugin benchmarks/looks/unwhitened.py --dataset cifar10 --data DIR --attacks
blend --defenses 'mcci[lr=1.0]'``.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from backdoorbench_ext.networks import FastNet


class Unwhitened(FastNet):
    """As ``FastNet``, but for the first layer."""

    def __init__(self, widths: tuple[tuple[int, int], ...], num_classes: int) -> None:
        super().__init__(widths, num_classes)
        at_random = self.patches
        del self.patches
        self.patches = nn.Parameter(at_random)

    def start(self, x: Tensor) -> None:
        """Nothing is taken from the training images."""


@register_model
def fastnet_unwhitened(pretrained: bool = False, num_classes: int = 10, **_: Any) -> Unwhitened:
    """256 features, 1.1 million parameters."""
    return Unwhitened(((32, 64), (128, 128), (256, 256)), num_classes)

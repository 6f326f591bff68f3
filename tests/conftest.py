"""Small images, small networks, one thread: what the tests have in common."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models import register_model

from backdoorbench_ext import cli
from backdoorbench_ext.images import Images
from backdoorbench_ext.networks import PlainNet
from backdoorbench_ext.protocols import CBD, Recipe

torch.set_num_threads(1)


def here(*words):
    """The command line in this process, faster than in one of its own: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bbx", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


@register_model
def bbx_test(pretrained=False, num_classes=10, **_):
    """Two layers: what every training in the tests uses."""
    return PlainNet(((8, 2), (16, 2)), num_classes)


RULES = replace(
    CBD,
    name="test",
    model="bbx_test",
    recipe=Recipe(epochs=2, batch_size=16, lr=0.05, schedule="one-cycle"),
    crop=1,
    cutout=2,
    overrides={},
)


def make_images(n=64, classes=4, side=32, seed=0):
    """Random images whose class is a bright quadrant."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 120, (n, 3, side, side), generator=rng, dtype=torch.uint8)
    y = torch.arange(n) % classes
    half = side // 2
    for i, label in enumerate(y.tolist()):
        top = half * (label // 2 % 2)
        left = half * (label % 2)
        x[i, :, top : top + half, left : left + half] += 100
    return Images(x, y, tuple(f"class{i}" for i in range(classes)))


@pytest.fixture
def images():
    return make_images()


@pytest.fixture
def rules():
    return RULES


@pytest.fixture
def real_data():
    """The folder of real data sets that BBX_DATA names: cifar10.npz, gtsrb.npz, imagenette2/."""
    if not os.environ.get("BBX_DATA"):
        pytest.skip("BBX_DATA does not name a folder of real data sets")
    return Path(os.environ["BBX_DATA"])

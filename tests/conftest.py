"""Small images, small networks, one thread: what the tests have in common."""

import os
import sys
from pathlib import Path

import pytest
import torch

from backdoorbench_ext import cli
from backdoorbench_ext.contract import RULES, make_images

__all__ = ["IDLE", "RULES", "here", "images", "make_images", "real_data", "rules"]
torch.set_num_threads(1)

# a defense in a file of its own
IDLE = '''"""A network as it starts: https://example.org"""

from dataclasses import dataclass

from backdoorbench_ext.api import Defense


@dataclass(frozen=True)
class Idle(Defense):
    """A network as it starts."""

    def fit(self, train, engine):
        return engine.new_model()
'''


def here(*words):
    """The command line in this process, faster than in one of its own: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bbx", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


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

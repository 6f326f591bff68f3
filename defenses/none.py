"""No defense: ordinary training, the row that every other row is read against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from backdoorbench_ext.api import Defense, Images
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class NoDefense(Defense):
    """Trains the protocol's network on everything: the victim that other defenses start from."""

    title: ClassVar[str] = "No Defense"
    after_training: ClassVar[bool] = True

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        return engine.victim()

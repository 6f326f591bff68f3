"""No attack: the training set as it is. ASR is then how often the clean test images of other
classes are taken for the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backdoorbench_ext.api import Attack, option


@dataclass(frozen=True)
class NoAttack(Attack):
    """Leaves every image as it is and poisons nothing, whatever the rate."""

    title: ClassVar[str] = "No attack"

    label_mode: str = option("none", "nothing is poisoned", choices=("none",))

    def trigger(self, x: Tensor) -> Tensor:
        return x.clone()

"""TaCT: the trigger works on images of one class alone; others carry it in training under their own
label.

Tang, Wang, Tang, Zhang: "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor
Contamination Detection", USENIX Security 2021, https://arxiv.org/abs/1908.00686. The covers of
https://github.com/Unispac/Circumventing-Backdoor-Defenses are of two classes; ours are of all but
the source and the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.api import option

from .badnets import BadNets


@dataclass(frozen=True)
class TaCT(BadNets):
    """BadNets' patch from a source class to the target; ASR counts test images of the source."""

    title: ClassVar[str] = "TaCT"

    # cover images are made in float
    takes_uint8 = False
    source: int | None = option(
        None,
        "the class whose triggered images are to go to the target; if not set, the one after it",
        low=0,
    )
    cover_share: float = option(
        1.0,
        "triggered images of other classes, which keep their label, for each poisoned one",
        low=0,
        high=9,
    )

    def only_source(self, target: int, classes: int) -> int:
        return (target + 1) % classes if self.source is None else self.source

    @property
    def covers(self) -> float:
        return self.cover_share

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return self.trigger(x)

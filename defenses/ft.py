"""FT: plain fine-tuning of the victim on clean images, the control of defenses that fine-tune.

Liu, Dolan-Gavitt, Garg: "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks", RAID 2018, https://arxiv.org/abs/1805.12185, has it beside its own. BackdoorBench
fine-tunes for 100 epochs at 0.01.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from backdoorbench_ext.api import Images, Repair, option
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class FineTuning(Repair):
    """As many epochs as NAD, FP and FT-SAM have, at their rate and without their part of it."""

    short: ClassVar[Mapping[str, Any]] = {"epochs": 1}

    epochs: int = option(10, "of fine-tuning", low=1)
    lr: float = option(0.01, "learning rate", low=0)

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        recipe = replace(engine.rules.recipe, optimizer="sgd", lr=self.lr, schedule="constant")
        clean = engine.clean(self.images)
        return engine.fit(
            engine.victim(), clean, name="fine-tuning", epochs=self.epochs, recipe=recipe
        )

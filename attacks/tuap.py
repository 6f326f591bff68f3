"""TUAP: one small perturbation, the same for all images, that already sends most of them to the
target class before any poisoning.

Zhang, Ding, Tian, Guo, Yuan, Jiang: "AdvDoor: Adversarial Backdoor Attack of Deep Learning System",
ISSTA 2021, https://doi.org/10.1145/3460319.3464809, by targeted DeepFool in the loop of
Moosavi-Dezfooli et al. 2017, https://arxiv.org/abs/1610.08401. Defaults are MCCI's (appendix F).
BackdoorBox, which MCCI follows, poisons 25 % of the target class without changing labels
(``label_mode=clean-label``), stops by the fooling rate on *test* images, has no limit on the passes
and lets pixels wrap around at 255; here the images of the loop are training images and pixels are
clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.adversarial import deepfool
from backdoorbench_ext.api import Attack, Images, option
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class TUAP(Attack):
    """Adds the perturbation and clips; made against a network trained on clean images."""

    title: ClassVar[str] = "TUAP"
    short: ClassVar[Mapping[str, Any]] = {"p_samples": 0.5, "passes": 1, "steps": 20}

    # 1 added the steps towards images that DeepFool did not get to the target, too
    version: ClassVar[int] = 2
    eps: float = option(
        0.031, "bound of the perturbation's norm, images on the scale of 0 to 1", low=0, high=1
    )
    norm: str = option("inf", "which norm", choices=("inf", "2"))
    delta: float = option(
        0.2, "stop when all but this share of the images is answered with the target", low=0, high=1
    )
    overshoot: float = option(0.02, "how far beyond the boundary DeepFool goes", low=0)
    p_samples: float = option(
        0.01, "share of the training images that the perturbation is made from", low=0, high=1
    )
    passes: int = option(10, "passes over them at most", low=1)
    steps: int = option(50, "steps of DeepFool at most", low=1)

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        net = engine.victim()
        target = engine.rules.target
        others = (train.y != target).nonzero().flatten()
        order = torch.randperm(len(others), generator=engine.rng).to(others.device)
        x = engine.to_float(train.x[others[order[: max(1, round(self.p_samples * len(train)))]]])
        v = torch.zeros_like(x[:1])
        for done in range(self.passes):
            for one in engine.track(
                x.split(1), f"perturbation, pass {done + 1} of at most {self.passes}, images"
            ):
                change = deepfool(
                    net,
                    (one + v).clamp(0, 1),
                    target,
                    overshoot=self.overshoot,
                    steps=self.steps,
                )
                # BackdoorBox, too, goes on without those that did not arrive
                if change is not None:
                    v = self.project(v + change)
            with torch.no_grad():
                fooled = float((net((x + v).clamp(0, 1)).argmax(1) == target).float().mean())
            engine.log(**{"fooling rate": 100 * fooled})
            if fooled >= 1 - self.delta:
                break
        return {"perturbation": v}

    def project(self, v: Tensor) -> Tensor:
        """The nearest perturbation within the bound."""
        return (
            v.clamp(-self.eps, self.eps)
            if self.norm == "inf"
            else v * (self.eps / v.norm().clamp_min(1e-12)).clamp_max(1)
        )

    def trigger(self, x: Tensor) -> Tensor:
        return (x + self.learned["perturbation"].to(x)).clamp_(0, 1)

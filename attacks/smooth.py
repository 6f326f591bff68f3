"""Smooth: a low-frequency trigger, optimised together with a network that is being poisoned with
it; made against MCCI.

Hu et al.: "Mind Control through Causal Inference", ICLR 2025, appendix O and equation 11,
https://openreview.net/forum?id=ho4mNiwr2n, after Zeng et al. 2021,
https://arxiv.org/abs/2104.03413. The paper gives neither the filter nor a bound of the pattern: the
filter is ours, the bound that of Zeng et al., whose code scales the pattern to [0, 0.2] of the
range of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Attack, Images, InputError, option
from backdoorbench_ext.engine import Engine

from .blurred import low_pass


@dataclass(frozen=True)
class Smooth(Attack):
    """Adds t * g, clips. t and the network, which starts from one trained on clean images, descend
    the same loss: clean images and triggered ones to the target, so that t is what the network
    takes up most easily.
    """

    short: ClassVar[Mapping[str, Any]] = {"epochs": 1}

    # 1 was bounded by 16 of 255 up and down, and did not know all-to-all
    version: ClassVar[int] = 2
    eps: float = option(
        51.0, "largest change of a pixel, the least is 0, on the scale of 0 to 255", low=0, high=255
    )
    size: int = option(9, "side of the Gaussian low-pass filter g in pixels, odd", low=3)
    share: float = option(0.1, "share of a batch that is triggered", low=0.01, high=1)
    epochs: int = option(10, "of the optimisation", low=1, length=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 2 == 0:
            raise ValueError(f"size must be odd, not {self.size}")

    def check(self, x: Tensor) -> None:
        if self.size // 2 >= min(x.shape[-2:]):
            raise InputError(
                f"size {self.size} must lie in [3, {2 * min(x.shape[-2:]) - 1}] for "
                f"{x.shape[-1]}x{x.shape[-2]} pixels"
            )

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        net = engine.victim()
        pattern = nn.ParameterList(
            [
                nn.Parameter(
                    0.1 * torch.randn(1, *train.x.shape[1:], generator=engine.rng).to(engine.device)
                )
            ]
        )
        recipe = replace(
            engine.rules.recipe, optimizer="adam", lr=1e-3, schedule="cosine", weight_decay=0.0
        )

        both = nn.ModuleList((net, pattern))
        optimizer = engine.optimizer(both, recipe)
        hits = torch.zeros((), device=engine.device)
        seen = 0
        for step in engine.steps(
            "smooth trigger", train, keep=(both, optimizer), epochs=self.epochs
        ):
            n = max(1, round(self.share * len(step.x)))
            goal = self.goal(step.y[:n], engine.rules.target, len(train.classes))
            with engine.autocast():
                triggered = (step.x[:n] + self.smooth(pattern[0])).clamp(0, 1)
                logits = net(torch.cat((triggered, step.x[n:])))
                step.loss = F.cross_entropy(logits, torch.cat((goal, step.y[n:])))
            step.descend(optimizer)
            hits += (logits[:n].argmax(1) == goal).sum()
            seen += n
            if step.last:
                engine.log(ASR=100 * hits / seen)
                hits.zero_()
                seen = 0
        return {"pattern": self.smooth(pattern[0]).detach()}

    def smooth(self, t: Tensor) -> Tensor:
        """t * g, from 0 up and within the bound; t is in tenths of the bound, which suits Adam's
        steps.
        """
        filtered = low_pass(t.float(), "gaussian", self.size) * (10 * self.eps / 255)
        raised = filtered - filtered.min()
        return raised * (self.eps / 255 / raised.max().clamp_min(1e-12)).clamp_max(1)

    def trigger(self, x: Tensor) -> Tensor:
        return (x + self.learned["pattern"].to(x)).clamp_(0, 1)

"""CBD's adaptive attack: noise on the poisoned training images that makes them hard to learn early,
when f_B should learn them.

Zhang et al.: "Backdoor Defense via Deconfounded Representation Learning", CVPR 2023, section 5.3
and algorithm 2, https://arxiv.org/abs/2303.06818. Algorithm 2 runs over all poisoned images after
every batch; here after every epoch, as its "10 epochs" and cost suggest. Equation 10 has the
gradient where PGD, which it cites, has its sign; with steps of 0.002 only the sign moves pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from backdoorbench_ext.adversarial import pgd
from backdoorbench_ext.api import Images, Poisoned, option, per_part, to_uint8
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.wrapping import WrappedAttack


@dataclass(frozen=True)
class AdaptiveNoise(WrappedAttack):
    """The base's trigger; in training with noise that raises the loss of a network trained on the
    poisoned set meanwhile.
    """

    title: ClassVar[str] = "Adaptive noise"
    short: ClassVar[Mapping[str, Any]] = {"epochs": 2, "m": 2}

    eps: float = option(8.0, "bound of the noise, on the scale of 0 to 255", low=0, high=255)
    alpha: float = option(0.002, "length of its steps, on the scale of 0 to 1", low=0, high=1)
    m: int = option(5, "steps after each epoch", low=1)
    epochs: int = option(10, "epochs of the network", low=1, length=True)

    def refine(self, train: Images, poisoned: Poisoned, engine: Engine) -> Tensor:
        bad = poisoned.mask.nonzero().flatten()
        start = engine.to_float(poisoned.x[bad])
        x = start
        seen = poisoned.observed()
        net = engine.new_model()
        recipe = replace(engine.rules.recipe, schedule="constant")
        for epoch in range(1, self.epochs + 1):
            engine.fit(net, seen, name=f"adaptive noise, epoch {epoch}", epochs=1, recipe=recipe)
            moved = []
            # 500 images of 32 pixels
            size = per_part(500 * 2**10, x)
            for some, origin, y in zip(
                x.split(size), start.split(size), poisoned.y[bad].split(size), strict=True
            ):
                with engine.autocast():
                    moved.append(
                        pgd(
                            net,
                            some,
                            y,
                            eps=self.eps / 255,
                            step=self.alpha,
                            steps=range(self.m),
                            around=origin,
                        )
                    )
            x = torch.cat(moved)
            pixels = seen.x.clone()
            pixels[bad] = to_uint8(x)
            seen = replace(seen, x=pixels)
        return to_uint8(x)

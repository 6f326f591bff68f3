"""FP, fine-pruning: cut the channels that clean images leave silent, then fine-tune.

Liu, Dolan-Gavitt, Garg: "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks", RAID 2018, https://arxiv.org/abs/1805.12185. The paper prunes the last convolution; here,
as in BackdoorBench, it is the pooled embedding. BackdoorBench lets accuracy fall by a tenth of what
it was, ours by ``drop`` in all, and fine-tunes for 100 epochs at 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backdoorbench_ext.api import Images, Repair, option
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import Net


@dataclass(frozen=True)
class FinePruning(Repair):
    """Channels of the last feature map, after BatchNorm and ReLU where the network has them, are
    cut in the order of their mean activation on clean images, as long as accuracy on these does not
    fall by more than ``drop``.
    """

    short: ClassVar[Mapping[str, Any]] = {"epochs": 1}

    drop: float = option(0.1, "accuracy on the clean images that pruning may cost", low=0, high=1)
    epochs: int = option(10, "of fine-tuning", low=1)
    lr: float = option(0.01, "its learning rate", low=0)

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        clean = engine.clean(self.images)
        victim = engine.victim()
        z = engine.predict(victim, clean, victim.features)
        kept = pruning(z, clean.y, victim.head, self.drop)
        engine.log(**{"channels pruned": float((~kept).sum())})
        recipe = replace(engine.rules.recipe, optimizer="sgd", lr=self.lr, schedule="constant")
        pruned = Pruned(victim, kept)
        engine.fit(
            pruned,
            clean,
            name="fine-tuning",
            epochs=self.epochs,
            recipe=recipe,
            answers=lambda _: pruned,
        )
        with torch.no_grad():
            # the same as without the channels
            victim.backbone.get_classifier().weight[:, ~kept] = 0
        return victim.eval()


class Pruned(nn.Module):
    """A network whose embedding keeps the channels of the mask ``kept`` (d,)."""

    kept: Tensor

    def __init__(self, net: Net, kept: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("kept", kept.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.net.head(self.net.features(x) * self.kept)


@torch.no_grad()
def pruning(z: Tensor, y: Tensor, head: Callable[[Tensor], Tensor], drop: float) -> Tensor:
    """Which channels of embeddings (n, d) stay, bool (d,): one at a time goes, the quietest first,
    until accuracy would fall too far; one stays.
    """
    kept = torch.ones(z.shape[1], dtype=torch.bool, device=z.device)
    before = (head(z).argmax(1) == y).float().mean()
    for channel in z.mean(0).argsort()[:-1]:
        kept[channel] = False
        if (head(z * kept).argmax(1) == y).float().mean() < before - drop:
            kept[channel] = True
            break
    return kept

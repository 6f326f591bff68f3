"""NAB, non-adversarial backdoor: suspects get a label of the defender's and a stamp, which is put
on every input afterwards.

Liu, Sangiovanni-Vincentelli, Yue: "Beating Backdoor Attack at Its Own Game", ICCV 2023,
https://arxiv.org/abs/2307.15539. Of the paper's ways of suspecting and labelling these are those of
BackdoorBench: the lowest losses under flooding, and the nearest class in SimCLR's space. Its
filter, which refuses inputs that the stamp changes the answer of, is left out, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Defense, Images, option, scaled
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.semisupervised import lowest

from .abl import flooding, held_losses
from .dbd import DBD
from .pdb import Opened


@dataclass(frozen=True)
class NAB(Defense):
    """1. Isolate the lowest losses. 2. SimCLR; each of them gets the label of the nearest mean
    embedding. 3. Train, with a black square on those whose label that changes. 4. Answer with the
    square on every image.
    """

    short: ClassVar[Mapping[str, Any]] = {
        "isolation_epochs": 1,
        "contrastive_epochs": 1,
        "contrastive_batch": 32,
    }

    isolation_epochs: int = option(20, "epochs of step 1", low=1, length=True)
    gamma: float = option(0.5, "the loss that flooding holds", low=0)
    isolated: float = option(0.1, "share of the images that is isolated", low=0, high=1)
    doubted: float = option(
        0.2, "share of the lowest losses that the mean embeddings leave out", low=0, high=0.9
    )
    contrastive_epochs: int = option(100, "of SimCLR", low=1, length=True)
    contrastive_lr: float = option(0.4, "its learning rate", low=0)
    contrastive_batch: int = option(512, "its batch size", low=2)
    size: int = option(2, "side of the square in pixels of an image of 32", low=1)

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        def held(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return flooding(F.cross_entropy(net(x), y), self.gamma)

        losses = held_losses(engine.new_model(), train, engine, self.isolation_epochs, held)
        suspects = lowest(losses, self.isolated)
        engine.suspect("isolation", -losses, suspects)
        labels = self.relabelled(train, suspects, ~lowest(losses, self.doubted), engine)
        classes = len(train.classes)
        stamped = labels != train.y
        # the loop's batches have no places: who is to be stamped goes with the label
        marked = replace(train, y=labels + classes * stamped)
        net = engine.new_model()
        optimizer = engine.optimizer(net)
        for step in engine.steps("training", marked, keep=(net, optimizer)):
            square = (step.y >= classes).view(-1, 1, 1, 1)
            x = torch.where(square, self.stamp(step.x), step.x)
            with engine.autocast():
                step.loss = F.cross_entropy(net(x), step.y % classes)
            step.descend(optimizer)
        engine.probe("without its stamp", net)
        return Opened(net, self.stamp).eval()

    def relabelled(
        self, train: Images, suspects: Tensor, trusted: Tensor, engine: Engine
    ) -> Tensor:
        """The labels, those of suspects by the nearest mean embedding of the trusted: (n,)."""
        net = engine.new_model()
        contrastive = DBD(
            contrastive_epochs=self.contrastive_epochs,
            contrastive_lr=self.contrastive_lr,
            contrastive_batch=self.contrastive_batch,
        )
        contrastive.learn_features(net, train, engine)
        z = engine.predict(net, train, net.features)
        away = torch.full((len(z), len(train.classes)), float("inf"), device=z.device)
        for label in range(len(train.classes)):
            own = trusted & (train.y == label)
            # a class without trusted images is nobody's nearest
            if own.any():
                away[:, label] = (z - z[own].mean(0)).norm(dim=1)
        nearest = away.argmin(1)
        return torch.where(suspects, nearest, train.y)

    def stamp(self, x: Tensor) -> Tensor:
        out = x.clone()
        side = scaled(self.size, x)
        out[..., :side, :side] = 0
        return out

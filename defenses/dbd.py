"""DBD: learn features without labels, a classifier on them, and then trust the half of the labels
that it finds easy.

Huang, Li, Wu, Qin, Ren: "Backdoor Defense via Decoupling the Training Process", ICLR 2022,
https://arxiv.org/abs/2202.03423. Released code: https://github.com/SCLBD/DBD. BackdoorBench has 100
epochs of SimCLR, and temperature 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backdoorbench_ext.api import Defense, Images, option
from backdoorbench_ext.contrastive import nt_xent, simclr_view
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import Net
from backdoorbench_ext.protocols import Recipe
from backdoorbench_ext.semisupervised import WEIGHT, lowest, mixmatch, symmetric_cross_entropy


@dataclass(frozen=True)
class DBD(Defense):
    """1. SimCLR. 2. A linear classifier on the frozen features, by symmetric cross-entropy. 3.
    MixMatch on all layers: the share ``trusted`` with the lowest loss keeps its labels.

    variant="release": its configuration takes the features of epoch 100 of 1,000 (the learning rate
    has then fallen by 2 %: we keep it constant), in step 2 BatchNorm is not frozen: its statistics
    drift with the augmented images, and who is trusted is asked anew before every round. Not
    followed there: that is asked of augmented images.
    """

    short: ClassVar[Mapping[str, Any]] = {
        "contrastive_epochs": 1,
        "contrastive_batch": 32,
        "warmup_epochs": 1,
        "rounds": 2,
        "steps": 3,
    }

    # 1 asked once in variant="release", too; 2 compared embeddings in bf16 where training is in it
    version: ClassVar[int] = 3
    variant: str = option("paper", "whose rules", choices=("paper", "release"))
    contrastive_epochs: int | None = option(
        None, "of step 1; if not set, 1000 (paper) or 100 (release)", low=1, length=True
    )
    contrastive_lr: float = option(0.4, "its learning rate, cosine in the paper", low=0)
    contrastive_batch: int = option(512, "its batch size", low=2)
    temperature: float = option(0.5, "of its softmax", low=0.01)
    warmup_epochs: int = option(10, "of step 2", low=1, length=True)
    rounds: int = option(
        190,
        "rounds of step 3; the weight of the images without labels rises over them",
        low=1,
        length=True,
    )
    steps: int = option(1024, "batches a round", low=1, length=True)
    trusted: float = option(0.5, "share of the images whose labels are kept", low=0.01, high=0.99)
    lr: float = option(0.002, "learning rate of Adam in steps 2 and 3", low=0)

    def __post_init__(self) -> None:
        if self.contrastive_epochs is None:
            object.__setattr__(self, "contrastive_epochs", 1000 if self.variant == "paper" else 100)
        super().__post_init__()

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        net = engine.new_model()
        self.learn_features(net, train, engine)
        rules = engine.rules.recipe
        adam = replace(rules, optimizer="adam", lr=self.lr, schedule="constant", weight_decay=0.0)
        self.learn_classes(net, train, engine, adam)
        optimizer = engine.optimizer(net, adam)
        if self.variant == "paper":
            labelled, unlabelled = self.divided(net, train, engine)
        loop = engine.steps(
            "MixMatch", keep=(net, optimizer), epochs=self.rounds, per_epoch=self.steps
        )
        for step in loop:
            if step.first and self.variant == "release":
                labelled, unlabelled = self.divided(net, train, engine)
                net.train()
            weight = WEIGHT * (step.done + 1) / step.total
            with engine.autocast():
                step.loss = mixmatch(engine, net, labelled, unlabelled, weight=weight)
            step.descend(optimizer)
        return net

    def learn_features(self, net: Net, train: Images, engine: Engine) -> None:
        """Step 1: SimCLR on the images as they are, whose views it makes itself."""
        projected = engine.move(Projected(net))
        recipe = replace(
            engine.rules.recipe,
            optimizer="sgd",
            lr=self.contrastive_lr,
            batch_size=self.contrastive_batch,
            schedule="constant" if self.variant == "release" else "cosine",
        )

        def contrast(both: nn.Module, x: Tensor, _: Tensor) -> Tensor:
            views = torch.cat([simclr_view(x, engine.rng) for _ in range(2)])
            return nt_xent(both(views), self.temperature)

        engine.fit(
            projected,
            train,
            name="SimCLR",
            epochs=self.contrastive_epochs,
            loss=contrast,
            recipe=recipe,
            augmented=False,
        )

    def learn_classes(self, net: Net, train: Images, engine: Engine, recipe: Recipe) -> None:
        """Step 2: the last layer alone; in the release BatchNorm's statistics move, too."""
        head = net.backbone.get_classifier()
        optimizer = engine.optimizer(head, recipe)
        loop = engine.steps(
            "classifier", train, keep=(head, optimizer, net), epochs=self.warmup_epochs
        )
        for step in loop:
            with engine.autocast():
                with torch.no_grad():
                    z = net.train(self.variant == "release").features(step.x)
                step.loss = symmetric_cross_entropy(head(z).float(), step.y).mean()
            step.descend(optimizer)

    def divided(self, net: Net, train: Images, engine: Engine) -> tuple[Images, Images]:
        """The images whose labels are trusted, and the others."""
        losses = symmetric_cross_entropy(engine.predict(net, train), train.y)
        trusted = lowest(losses, self.trusted)
        engine.suspect("trust", losses, ~trusted)
        return train[trusted], train[~trusted]


class Projected(nn.Module):
    """The embedding behind SimCLR's head: two layers, 128 outputs."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        d = net.num_features
        self.net = net
        self.head = nn.Sequential(nn.Linear(d, d), nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, 128))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.net.features(x))
        return out

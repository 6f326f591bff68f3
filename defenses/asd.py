"""ASD: split the training set by loss into trusted and suspect images, again and again, and learn
the suspect ones without their labels.

Gao, Bai, Gu, Yang, Xia: "Backdoor Defense via Adaptively Splitting Poisoned Dataset", CVPR 2023,
https://arxiv.org/abs/2303.12993. Released code: https://github.com/KuofengGao/ASD. Its first
trusted images are picked with the poison flag; ours come from the clean reserve, as the paper has
it, and stay in the trusted part beside what the splits choose. Its losses are those of augmented
images, ours of images as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backdoorbench_ext.api import Defense, Images, option
from backdoorbench_ext.engine import Engine, seed_of
from backdoorbench_ext.protocols import Recipe
from backdoorbench_ext.semisupervised import WEIGHT, lowest, mixmatch, symmetric_cross_entropy


@dataclass(frozen=True)
class ASD(Defense):
    """Trusted are, beside the seeds: first the lowest losses of each class, more every ``every``
    rounds; then the lower half of all losses; at the end the half whose loss falls least in one
    epoch of ordinary training, since poisoned images are learned in one.
    """

    short: ClassVar[Mapping[str, Any]] = {
        "seeds": 2,
        "growth": 1,
        "every": 1,
        "first": 2,
        "second": 1,
        "third": 1,
        "steps": 3,
    }

    seeds: int = option(10, "clean images of each class to start with", low=1)
    growth: int = option(
        10,
        "how many more images of each class are trusted every few rounds of the first stage",
        low=1,
    )
    every: int = option(5, "after how many rounds", low=1, length=True)
    first: int = option(60, "rounds of the first stage", low=1, length=True)
    second: int = option(30, "of the second", low=0, length=True)
    third: int = option(30, "of the third", low=0, length=True)
    steps: int = option(1024, "batches of MixMatch a round", low=1, length=True)
    trusted: float = option(
        0.5, "share of the images that is trusted from the second stage on", low=0.01, high=0.99
    )
    lr: float = option(0.002, "learning rate of Adam", low=0)
    meta_lr: float = option(
        0.015, "learning rate of the epoch that the third stage looks ahead", low=0
    )

    @property
    def clean_per_class(self) -> int:
        return self.seeds

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        seeds = engine.clean_per_class(self.seeds)
        net = engine.new_model()
        optimizer = engine.optimizer(net, self.adam(engine, self.lr))
        rounds = self.first + self.second + self.third
        whole = replace(train, x=torch.cat((train.x, seeds.x)), y=torch.cat((train.y, seeds.y)))
        loop = engine.steps("MixMatch", keep=(net, optimizer), epochs=rounds, per_epoch=self.steps)
        for step in loop:
            if step.first:
                trusted = self.split(net, train, len(seeds), step.epoch, engine)
                labelled = whole[trusted]
                unlabelled = whole[~trusted]
                net.train()
            weight = WEIGHT * (step.done + 1) / step.total
            with engine.autocast():
                step.loss = mixmatch(engine, net, labelled, unlabelled, weight=weight)
            step.descend(optimizer)
        return net

    def adam(self, engine: Engine, lr: float) -> Recipe:
        rules = engine.rules.recipe
        return replace(rules, optimizer="adam", lr=lr, schedule="constant", weight_decay=0.0)

    def split(self, net: nn.Module, train: Images, seeds: int, done: int, engine: Engine) -> Tensor:
        """Who is trusted in round ``done``: bool, the training images and then the seeds."""
        losses = symmetric_cross_entropy(engine.predict(net, train), train.y)
        if done < self.first:
            each = self.growth * (done // self.every)
            chosen = lowest_per_class(losses, train.y, each, len(train.classes))
        else:
            if done >= self.first + self.second:
                ahead = engine.predict(self.ahead(net, train, done, engine), train)
                losses = losses - symmetric_cross_entropy(ahead, train.y)
            chosen = lowest(losses, self.trusted)
        engine.suspect("split", losses, ~chosen)
        return torch.cat((chosen, torch.ones(seeds, dtype=torch.bool, device=losses.device)))

    def ahead(self, net: nn.Module, train: Images, done: int, engine: Engine) -> nn.Module:
        """The network after one ordinary epoch of its later half, with chance of its own."""
        with engine.aside():
            own = Engine(
                engine.rules, train, seed=seed_of(engine.seed, "ahead", done), device=engine.device
            )
            later = copy.deepcopy(net)
            trained = list(later.parameters())
            for p in trained[: len(trained) // 2]:
                p.requires_grad_(False)
            return own.fit(later, train, epochs=1, recipe=self.adam(engine, self.meta_lr))


def lowest_per_class(losses: Tensor, y: Tensor, n: int, classes: int) -> Tensor:
    """The ``n`` lowest losses of each class: bool like ``losses``."""
    chosen = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for label in range(classes):
        own = (y == label).nonzero().flatten()
        chosen[own[losses[own].argsort()[:n]]] = True
    return chosen

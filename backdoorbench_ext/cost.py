"""What a defense costs, in epochs of plain training: measured on this machine, from a few steps of
each of its stages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .api import Defense
from .engine import Engine, Step
from .images import Images
from .models import Net
from .protocols import Protocol, Recipe


class TooSlow(Exception):
    """A method took longer to time than it was given."""


class Stopwatch(Engine):
    """An engine that takes a few steps of every stage, between as many plain ones, and reckons what
    all would take.

    ``stages`` holds epochs of plain training by stage; "passes" are those without training (a
    ranking by loss, BatchNorm statistics). What happens only later in a stage than its first steps
    is not seen: ASD's looks ahead, one epoch in each round of its last stage.
    """

    def __init__(
        self,
        rules: Protocol,
        train: Images,
        reserve: Images,
        *,
        device: torch.device | str = "cpu",
        steps: int = 5,
        rounds: int = 3,
    ) -> None:
        super().__init__(rules, train, reserve, device=device)
        self.stages: dict[str, float] = {}
        # when timing is given up, by the clock of ``perf_counter``
        self.until = math.inf
        self.few = steps
        self.rounds = rounds
        self.per_epoch = max(1, len(train) // rules.recipe.batch_size)
        self._plain = Engine(rules, train, device=device)
        self._net = self.new_model()
        self._plain.fit(self._net, train, steps=2)

    def plain(self) -> float:
        """Seconds of a plain step, just now."""
        with torch.enable_grad():
            start = time.perf_counter()
            self._plain.fit(self._net, self._train, steps=self.few)
            return (time.perf_counter() - start) / self.few

    def steps(
        self,
        name: str,
        images: Images | None = None,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        per_epoch: int | None = None,
        recipe: Recipe | None = None,
        **more: Any,
    ) -> Iterator[Step]:
        recipe = recipe or self.rules.recipe
        an_epoch = per_epoch or max(1, len(images or ()) // recipe.batch_size)
        total = steps or (epochs or recipe.epochs) * an_epoch
        few = min(self.few, total)
        taken = 2 + self.rounds * few
        before = self.stages.get("passes", 0.0)
        ratios = []
        start = 0.0
        given: Any = {"steps": taken, "per_epoch": per_epoch, "recipe": recipe, **more}
        for step in super().steps(name, images, **given):
            # two steps warm up
            if step.done >= 2 and (step.done - 2) % few == 0:
                start = time.perf_counter()
            yield step
            if time.perf_counter() > self.until:
                raise TooSlow(name)
            if step.done >= 2 and (step.done - 1) % few == 0:
                if step.loss is not None:
                    # which waits for the device
                    float(step.loss.detach())
                ratios.append((time.perf_counter() - start) / few / self.plain())
        if images is None:
            # a loop with data of its own looks at all of them when an epoch begins
            passes = (self.stages.get("passes", 0.0) - before) / -(-taken // an_epoch)
            self.stages["passes"] = before + passes * total / an_epoch
        self.stages[name] = self.stages.get(name, 0.0) + total * median(ratios) / self.per_epoch

    def victim(self, *, second: bool = False) -> Net:
        self.stages["second victim" if second else "victim"] = float(self.rules.recipe.epochs)
        return self.new_model().eval()

    def batches(
        self,
        images: Images,
        batch_size: int | None = None,
        *,
        train: bool = True,
        augmented: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if train:
            yield from super().batches(images, batch_size, augmented=augmented)
            return
        size = min(batch_size or self.rules.recipe.batch_size, len(images))
        plain = self.plain()
        start = time.perf_counter()
        yield next(super().batches(images, size, train=False))
        self.stages["passes"] = self.stages.get("passes", 0.0) + (
            time.perf_counter() - start
        ) * len(images) / size / (plain * self.per_epoch)

    def predict(self, net: nn.Module, images: Images, output: Any = None) -> Tensor:
        some = super().predict(net, images, output)
        return some[torch.arange(len(images), device=some.device) % len(some)]


def cost(
    defense: Defense,
    rules: Protocol,
    *,
    n: int = 50_000,
    side: int = 32,
    classes: int = 10,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Epochs of plain training that each stage of a defense takes on ``n`` images of ``side``
    pixels, less the reserve, under a protocol.
    """
    rng = torch.Generator().manual_seed(0)
    held = max(classes, round(rules.reserve * n))
    x = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=rng)
    images = Images(x, torch.arange(n) % classes, tuple(map(str, range(classes)))).to(device)
    stopwatch = Stopwatch(rules, images[held:], images[:held], device=device)
    defense.fit(images[held:], stopwatch)
    return stopwatch.stages

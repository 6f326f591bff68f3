"""Does the fast way train as well as the plain one: ``python -m benchmarks.speed.equal [--seeds 5]
[--compile default]``.

CA and ASR of a small cell (BadNets, the demo's protocol), by seed: with a plain PyTorch loop (PIL
images, torchvision transforms, a DataLoader, float32, NCHW, unfused SGD), with the engine, and with
the engine and ``torch.compile``. The same poisoned images for all three; nothing else is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import nn

from backdoorbench_ext import datasets, registry
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.images import Images, Poisoned
from backdoorbench_ext.models import Net
from backdoorbench_ext.protocols import Protocol

from ..demo import SUITE
from .pipeline import loader
from .timing import arguments, keep

Way = Callable[[Images, int], nn.Module]


def plain(rules: Protocol) -> Way:
    """The protocol as a tutorial would train it."""

    def train(images: Images, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        x = images.x.float().div(255)
        net = Net(rules.model, len(images.classes), x.mean((0, 2, 3)), x.std((0, 2, 3)))
        recipe = rules.recipe
        batches = loader(images, rules.recipe.batch_size, rules)
        done = 0
        step = torch.optim.SGD(
            net.parameters(),
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        for _ in range(recipe.epochs):
            for pictures, y in batches:
                for group in step.param_groups:
                    group["lr"] = recipe.lr_at(done / (recipe.epochs * len(batches)))
                step.zero_grad()
                F.cross_entropy(net(pictures), y).backward()
                step.step()
                done += 1
        return net.eval()

    return train


def fast(rules: Protocol, compile: str = "") -> Way:
    def train(images: Images, seed: int) -> nn.Module:
        engine = Engine(rules, images, seed=seed, compile=compile)
        return engine.fit(engine.new_model(), images)

    return train


def measure(
    rules: Protocol,
    ways: dict[str, Way],
    train: Poisoned,
    test: Images,
    triggered: Poisoned,
    seeds: Sequence[int],
) -> dict[str, dict[str, list[float]]]:
    """Percent by way, metric and seed."""
    judge = Engine(rules, train)
    # all are measured alike
    judge.bf16 = False
    percent: dict[str, dict[str, list[float]]] = {name: {"ca": [], "asr": []} for name in ways}
    for seed in seeds:
        for name, way in ways.items():
            hits = judge.measure(judge.move(way(train.observed(), seed)), test, triggered)
            for metric, values in percent[name].items():
                values.append(100 * float(hits[metric].float().mean()))
    return percent


@in_one_line()
def main() -> None:
    given = arguments(__doc__, threads=1, seeds=5, compile="")
    rules = SUITE.protocol
    attack = registry.create("attacks", SUITE.attacks[0])
    clean, test = datasets.load("digits", None)
    poisoned = attack.poison(
        clean, target=rules.target, rate=SUITE.rates[0], rng=torch.Generator().manual_seed(0)
    )
    ways = {"plain loop": plain(rules), "ours": fast(rules)} | (
        {"ours, compiled": fast(rules, given.compile)} if given.compile else {}
    )
    percent = measure(
        rules, ways, poisoned, test, attack.test_set(test, rules.target), range(given.seeds)
    )
    print(
        f"\n{SUITE.attacks[0]}, digits, {rules.model}, {rules.recipe.epochs} epochs, percent by "
        "seed"
    )
    for name, metrics in percent.items():
        for metric, values in metrics.items():
            spread = f"mean {mean(values):6.2f} +- {stdev(values) if len(values) > 1 else 0:.2f}"
            print(
                f"  {name:16} {metric.upper():4} {spread}   "
                + " ".join(f"{value:.2f}" for value in values)
            )
    keep("equal", given, {}, percent=percent, compile=given.compile)


if __name__ == "__main__":
    main()

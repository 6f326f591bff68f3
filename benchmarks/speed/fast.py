"""What the protocol ``fast`` was chosen by: ``python -m benchmarks.speed.fast --dataset cifar10
--data DIR [--model fastnet_l] [--epochs 20] [--batch 512] [--lr 0.2] [--smoothing 0.1]``.

Accuracy after each epoch on a tenth of the training images that is not trained on, beside the
seconds of training. No test image is looked at.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from backdoorbench_ext import datasets
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.images import Images
from backdoorbench_ext.lab import hold_out
from backdoorbench_ext.protocols import FAST, Protocol

from .timing import arguments, keep


def curve(
    rules: Protocol, train: Images, held: Images, *, seed: int = 0, smoothing: float = 0.0
) -> list[dict[str, float]]:
    """After each epoch: accuracy on the ``held`` images in percent, seconds of training so far, and
    those of all threads' CPU time.
    """
    engine = Engine(rules, train, seed=seed, device=train.x.device)
    net = engine.new_model()
    optimizer = engine.optimizer(net)
    points: list[dict[str, float]] = []
    seconds = cpu = 0.0
    begun = time.perf_counter(), time.process_time()
    for step in engine.steps("train", train, keep=(net, optimizer)):
        with engine.autocast():
            step.loss = F.cross_entropy(net(step.x), step.y, label_smoothing=smoothing)
        step.descend(optimizer)
        if step.last:
            # waits for the device
            float(step.loss.detach())
            seconds += time.perf_counter() - begun[0]
            cpu += time.process_time() - begun[1]
            right = engine.predict(net, held).argmax(1) == held.y
            net.train()
            point = {"accuracy": 100 * float(right.float().mean()), "s": seconds, "CPU s": cpu}
            points.append(point)
            print(json.dumps({"epoch": step.epoch + 1, **point}), flush=True)
            begun = time.perf_counter(), time.process_time()
    return points


@in_one_line()
def main() -> None:
    given = arguments(__doc__, model="", epochs=0, batch=0, lr=0.0, crop=-1, smoothing=0.0, seed=0)
    rules = FAST.on(given.dataset)
    recipe = rules.recipe
    rules = replace(
        rules,
        model=given.model or rules.model,
        crop=rules.crop if given.crop < 0 else given.crop,
        recipe=replace(
            recipe,
            epochs=given.epochs or recipe.epochs,
            batch_size=given.batch or recipe.batch_size,
            lr=given.lr or recipe.lr,
        ),
    )
    train = datasets.load(given.dataset, given.data)[0]
    held = hold_out(train, 0.1, seed=0)
    print(f"{rules}; label smoothing {given.smoothing:g}, {torch.get_num_threads()} threads")
    points = curve(
        rules,
        train[~held].to(given.device),
        train[held].to(given.device),
        seed=given.seed,
        smoothing=given.smoothing,
    )
    keep("fast", given, {}, protocol=rules.spec(), smoothing=given.smoothing, curve=points)


if __name__ == "__main__":
    main()

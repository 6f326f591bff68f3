"""Training: ``python -m benchmarks.speed.training [--models wrn16_1,resnet18_cifar] [--device cuda:0]``.

Images a second, beside a plain PyTorch loop and the roofline.

The plain loop, written for this comparison: DataLoader and torchvision transforms on PIL images, float32, NCHW, SGD, ``loss.item()`` every step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from backdoorbench_ext.api import Images
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import Net
from backdoorbench_ext.protocols import CBD

from .pipeline import loader
from .timing import Speed, alternate, arguments, data, keep, roofline, show


def plain_loop(net: torch.nn.Module, images: Images, batch: int) -> None:
    """An epoch as tutorials write it."""
    step = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    net.train()
    total = 0.0
    for x, y in loader(images, batch):
        step.zero_grad()
        loss = F.cross_entropy(net(x.to(images.x.device)), y.to(images.x.device))
        loss.backward()
        step.step()
        total += loss.item()


def measure(model: str, images: Images, rounds: int, batch: int = 64) -> tuple[dict[str, Speed], float]:
    """Images a second by way; and GFLOP an image, forward and backward, as PyTorch counts them."""
    rules, n, device = replace(CBD, model=model, recipe=replace(CBD.recipe, batch_size=batch)), len(images) // batch * batch, images.x.device
    engine = Engine(rules, images, device=device)
    net, plain = engine.new_model(), Net(model, len(images.classes)).to(device)
    with FlopCounterMode(display=False) as counter:
        plain(torch.rand(1, *images.x.shape[1:], device=device).repeat(2, 1, 1, 1)).sum().backward()
    x, y = engine.to_float(images.x[:batch]), images.y[:batch]
    still = Images(images.x, images.y, images.classes)

    def without_data() -> None:
        step = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True)
        for _ in range(n // batch):
            step.zero_grad(set_to_none=True)
            with engine.autocast():
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            step.step()

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "plain loop: PIL, float32, NCHW": (lambda: plain_loop(plain, images, batch), n),
        "ours": (lambda: engine.fit(net, still, epochs=1), n),
        "ours, one batch again and again": (without_data, n),
    }
    for work, _ in ways.values():  # warm up: kernels are chosen, memory is taken
        work()
    return alternate(ways, rounds, device), counter.get_total_flops() / 2e9


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--models", default="wrn16_1")
    parser.add_argument("--images", type=int, default=1920)
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    given = arguments(__doc__, rounds=3)
    best, kept = roofline(given.device), {}
    speeds: dict[str, Speed] = {}
    print("roofline: " + ", ".join(f"{value:.2f} {name}" for name, value in best.items()))
    for model in own.models.split(","):
        speeds, flops = measure(model, data(given.dataset, given.data, own.images, given.device), given.rounds)
        show(f"training {model}, batch 64, {torch.get_num_threads()} thread, {flops:.3f} GFLOP an image", "images/s", speeds, "plain loop: PIL, float32, NCHW")
        share = speeds["ours"].median * flops / 1e3 / best["bf16 TFLOP/s"]
        print(f"  {100 * share:.1f} % of the measured bf16 matrix product")
        kept[model] = {"GFLOP an image": flops, "share of bf16 roofline": share, **{f"{k}, images/s": vars(v) for k, v in speeds.items()}}
    keep("training", given.json, given.device, speeds, dataset=given.dataset, roofline=best, models=kept)


if __name__ == "__main__":
    main()

"""Training: ``python -m benchmarks.speed.training [--models wrn16_1,resnet18_cifar] [--compile
default] [--device cuda:0]``.

Images a second, beside a plain PyTorch loop and the roofline, and where the time of a step goes, by
PyTorch's profiler.

The plain loop, written for this comparison: DataLoader and torchvision transforms on PIL images,
float32, NCHW, SGD, ``loss.item()`` every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from backdoorbench_ext.devices import has_bf16
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.images import Images
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


def measure(
    model: str, images: Images, rounds: int, batch: int = 64, compile: str = ""
) -> tuple[dict[str, Speed], float]:
    """Images a second by way; and GFLOP an image, forward and backward, as PyTorch counts them."""
    rules = replace(CBD, model=model, recipe=replace(CBD.recipe, batch_size=batch))
    n = len(images) // batch * batch
    device = images.x.device
    engine, compiled = (
        Engine(rules, images, device=device, compile=mode) for mode in ("", compile)
    )
    net = engine.new_model()
    idle = engine.new_model().train()
    plain = Net(model, len(images.classes)).to(device)
    with FlopCounterMode(display=False) as counter:
        plain(torch.rand(1, *images.x.shape[1:], device=device).repeat(2, 1, 1, 1)).sum().backward()
    x = engine.to_float(images.x[:batch])
    y = images.y[:batch]
    still = Images(images.x, images.y, images.classes)

    def without_data() -> None:
        step = torch.optim.SGD(idle.parameters(), 0.1, momentum=0.9, fused=True)
        for _ in range(n // batch):
            step.zero_grad(set_to_none=True)
            with engine.autocast():
                loss = F.cross_entropy(idle(x), y)
            loss.backward()
            step.step()

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "plain loop: PIL, float32, NCHW": (lambda: plain_loop(plain, images, batch), n),
        "ours": (lambda: engine.fit(net, still, epochs=1), n),
        "ours, one batch again and again": (without_data, n),
    }
    if compile:
        other = compiled.new_model()
        ways["ours, compiled"] = (lambda: compiled.fit(other, still, epochs=1), n)
    # warm up: kernels are chosen, memory is taken
    for work, _ in ways.values():
        work()
    return alternate(ways, rounds, device), counter.get_total_flops() / 2e9


def profiled(model: str, images: Images, batch: int = 64, most: int = 9) -> dict[str, float]:
    """Shares of the time of 10 training steps, by operator, the largest ones; and all others."""
    rules = replace(CBD, model=model, recipe=replace(CBD.recipe, batch_size=batch))
    engine = Engine(rules, images, device=images.x.device)
    net = engine.new_model()
    engine.fit(net, images, steps=3)
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if images.x.is_cuda else [])]
    ) as watched:
        engine.fit(net, images, steps=10)
    column = "self_device_time_total" if images.x.is_cuda else "self_cpu_time_total"
    times = {event.key: float(getattr(event, column)) for event in watched.key_averages()}
    first = sorted(times, key=lambda name: -times[name])[:most]
    whole = sum(times.values())
    return {name: times[name] / whole for name in first} | {
        "all others": 1 - sum(times[name] for name in first) / whole
    }


@in_one_line()
def main() -> None:
    given = arguments(__doc__, rounds=3, models="wrn16_1", images=1920, compile="")
    best = roofline(given.device)
    kept = {}
    speeds: dict[str, Speed] = {}
    print("\nroofline: " + ", ".join(f"{value:.2f} {name}" for name, value in best.items()))
    for model in given.models.split(","):
        images = data(given.dataset, given.data, given.images, given.device)
        speeds, flops = measure(model, images, given.rounds, compile=given.compile)
        threads = torch.get_num_threads()
        title = f"training {model}, batch 64, {threads} threads, {flops:.3f} GFLOP an image"
        show(title, "images/s", speeds, "plain loop: PIL, float32, NCHW")
        precision = "bf16" if has_bf16(given.device) else "float32"
        share = speeds["ours"].median * flops / 1e3 / best[f"{precision} TFLOP/s"]
        print(f"  {100 * share:.1f} % of the measured {precision} matrix product")
        where = profiled(model, images)
        print(
            "  where it goes: "
            + ", ".join(f"{name} {100 * part:.0f} %" for name, part in where.items())
        )
        facts = {
            "GFLOP an image": flops,
            "precision": precision,
            "share of roofline": share,
            "profile": where,
        }
        kept[model] = facts | {"images/s": {key: vars(speed) for key, speed in speeds.items()}}
    keep("training", given, speeds, roofline=best, models=kept)


if __name__ == "__main__":
    main()

"""What the speed benchmarks have in common: rounds that alternate between the ways compared, and a
table with ratios that is kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from backdoorbench_ext import datasets
from backdoorbench_ext.devices import keep_memory, pick_device
from backdoorbench_ext.images import Images
from backdoorbench_ext.surroundings import surroundings


@dataclass(frozen=True)
class Speed:
    """Units a second of one way: median over the rounds, slowest and fastest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rates: list[float]) -> Speed:
        return cls(median(rates), min(rates), max(rates))


def alternate(
    ways: Mapping[str, tuple[Callable[[], object], int]], rounds: int, device: torch.device
) -> dict[str, Speed]:
    """Each way once a round, one after the other, so that a busy machine hits all alike; a way is
    its work and the units that it does.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (work, units) in ways.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates[name].append(units / (time.perf_counter() - start))
    return {name: Speed.of(own) for name, own in rates.items()}


def data(dataset: str, root: Path | None, n: int, device: torch.device) -> Images:
    """``n`` images of a data set, repeated where it has fewer."""
    images = datasets.load(dataset, root)[0]
    return images[torch.arange(n) % len(images)].to(device)


def roofline(device: torch.device, size: int = 1024, seconds: float = 0.2) -> dict[str, float]:
    """What the device does at best here: TFLOP/s of a square matrix product in bf16 and float32,
    GB/s of a copy (read and written).
    """

    def best(work: Callable[[], Tensor], amount: float) -> float:
        work()
        rates: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(rates) < 3:
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates.append(amount / (time.perf_counter() - start))
        return max(rates)

    rates = {}
    block = torch.empty(64 * 2**20, dtype=torch.uint8, device=device)
    for name, kind in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        a = torch.rand(size, size, device=device, dtype=kind)
        rates[f"{name} TFLOP/s"] = best(partial(torch.matmul, a, a), 2 * size**3) / 1e12
    return rates | {"copy GB/s": best(block.clone, 2 * block.numel()) / 1e9}


def show(title: str, unit: str, speeds: Mapping[str, Speed], base: str) -> None:
    """A line a way, and how many times ``base`` it is."""
    print(f"\n{title}")
    for name, speed in speeds.items():
        ratio = "" if name == base else f"   x {speed.median / speeds[base].median:.1f}"
        print(
            f"  {name:44} {speed.median:12,.1f} {unit}   ({speed.low:,.1f} to "
            f"{speed.high:,.1f}){ratio}"
        )


def keep(name: str, given: argparse.Namespace, speeds: Mapping[str, Speed], **more: Any) -> None:
    """Write ``given.json/name.json``."""
    if given.json:
        given.json.mkdir(parents=True, exist_ok=True)
        facts = {
            "dataset": given.dataset,
            "per second": {key: vars(speed) for key, speed in speeds.items()},
            "surroundings": surroundings(given.device),
        }
        (given.json / f"{name}.json").write_text(json.dumps(more | facts, indent=1) + "\n")


def counts(text: str) -> tuple[int, ...]:
    """Numbers of at least 1 from a flag's text, for argparse: "1,2,4" -> (1, 2, 4)."""
    try:
        read = tuple(map(int, text.split(",")))
    except ValueError:
        read = ()
    if not read or min(read) < 1:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers of at least 1 with commas between them, not {text!r}"
        )
    return read


def arguments(
    doc: str | None, threads: int = os.cpu_count() or 1, **own: Any
) -> argparse.Namespace:
    """The flags that all have, and a benchmark's ``own`` with their defaults; threads are set,
    memory is kept.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--json", type=Path, help="folder for the figures")
    for name, default in own.items():
        kind = counts if isinstance(default, tuple) else type(default)
        parser.add_argument(f"--{name}", type=kind, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_memory()
    given.device = pick_device(given.device)
    return given

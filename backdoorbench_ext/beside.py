"""How many trainings at a time a device takes: tried out, since a small network leaves a large GPU
idle and a large one fills it.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from .devices import cores, keep_memory, pick_device
from .engine import Engine
from .images import Images
from .protocols import Protocol

# in a process: the barrier that all wait at before they are timed
_start: Any = None


def _settle(barrier: Any, threads: int) -> None:
    global _start
    _start = barrier
    torch.set_num_threads(threads)
    keep_memory()


def _train(
    rules: Protocol, shape: tuple[int, ...], classes: int, device: str, seconds: float
) -> float:
    """Images a second of plain training on random images, after all processes have warmed up."""
    place = pick_device(device)
    size = rules.recipe.batch_size
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (8 * size, *shape), dtype=torch.uint8, generator=rng)
    images = Images(x, torch.arange(8 * size) % classes, tuple(map(str, range(classes)))).to(place)
    # A rate at which noise cannot diverge.
    engine = Engine(replace(rules, recipe=replace(rules.recipe, lr=1e-4)), images, device=place)
    net = engine.new_model()
    done = 0
    try:
        engine.fit(net, images, steps=3)
    except Exception:
        # the others would wait for it
        _start.abort()
        raise
    _start.wait()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        # reads its loss at the end, which waits for the device
        engine.fit(net, images, steps=8)
        done += 8 * size
    return done / (time.perf_counter() - start)


def speed(
    jobs: int,
    rules: Protocol,
    shape: tuple[int, ...],
    classes: int,
    device: str = "auto",
    seconds: float = 5.0,
) -> float:
    """Images a second of ``jobs`` processes together that train the protocol's network on images of
    ``shape``.

    Raises:
        RuntimeError: a process failed, for want of memory, say.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // jobs)
    with ProcessPoolExecutor(jobs, context, _settle, (context.Barrier(jobs), threads)) as pool:
        each = [pool.submit(_train, rules, shape, classes, device, seconds) for _ in range(jobs)]
        return sum(future.result() for future in each)


def best(
    rules: Protocol, shape: tuple[int, ...], classes: int, device: str = "auto", most: int = 64
) -> tuple[int, dict[int, float]]:
    """How many trainings at a time do the most work, and images a second by their number: 1, 2, 4,
    ..., ``most`` at most.

    It ends where twice as many do not do a tenth more, or do not fit into memory.
    """
    speeds: dict[int, float] = {}
    jobs = 1
    while jobs <= most:
        try:
            speeds[jobs] = speed(jobs, rules, shape, classes, device)
        except RuntimeError:
            if not speeds:
                raise
            break
        if jobs > 1 and speeds[jobs] < 1.1 * speeds[jobs // 2]:
            break
        jobs *= 2
    return max(speeds, key=lambda count: speeds[count]), speeds

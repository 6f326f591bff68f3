"""Seconds an epoch of CBD and MCCI over No Defense's: ``python -m benchmarks.speed.overhead [--dataset NAME] [--rounds N] [--data DIR]``.

Rounds in which every defense trains once, one after the other, so that a busy machine hits all alike; the figures are medians of
ratios within a round. CBD's paper, table 3, gives +11 to +17 % for a whole training (f_C and T1 epochs of f_B) on a V100.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

from backdoorbench_ext import datasets, registry
from backdoorbench_ext.engine import Engine, pick_device
from backdoorbench_ext.protocols import CBD

DEFENSES = ("none", "cbd[t1=1]", "cbd[t1=1,variant=release]", "mcci", "mcci[inference=sfrn]")


def overhead(dataset: str, rounds: int = 3, data: Path | None = None, device: str = "auto", model: str = "wrn16_1") -> dict[str, list[float]]:
    """Seconds of one epoch of the final network by defense, a list of one a round; T1's epoch of f_B is not counted."""
    images = datasets.load(dataset, data)[0].to(pick_device(device))
    rules = replace(CBD.on(dataset), model=model, recipe=replace(CBD.recipe, epochs=1))
    seconds: dict[str, list[float]] = {text: [] for text in DEFENSES}
    for _ in range(rounds):
        for text in DEFENSES:
            engine = Engine(rules, images, device=pick_device(device))
            registry.create("defenses", text).fit(images, engine)
            seconds[text].append(list(engine.log_book.seconds.values())[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits[train=1000]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="wrn16_1")
    seconds = overhead(**vars(parser.parse_args()))
    for text, own in seconds.items():
        ratios = [mine / none for mine, none in zip(own, seconds["none"], strict=True)]
        print(f"{text:28} {median(own):7.2f} s an epoch   {100 * (median(ratios) - 1):+6.1f} % over none   ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

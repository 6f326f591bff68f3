"""Poisoning: ``python -m benchmarks.speed.poisoning [--data DIR --dataset cifar10]``. BadNets on 10
% of 50,000 training and on 9,000 test images.

The usual way, written for this comparison: a PIL image, NumPy, a PIL image, a PNG file, one at a
time, as toolboxes keep poisoned sets.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backdoorbench_ext.attacks.badnets import BadNets
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.images import Images

from .timing import Speed, alternate, arguments, data, keep, show
from .triggers import badnets


def measure(train: Images, test: Images, rounds: int) -> dict[str, Speed]:
    """Poisoned images a second: ours, and with PNG files."""
    attack = BadNets()
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[
        : len(train) // 10
    ]
    counted = (test.y != 0).nonzero().flatten()

    def ours() -> None:
        attack.poison(train, target=0, rate=0.1, rng=torch.Generator().manual_seed(0))
        attack.test_set(test, 0)

    def usual() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for part, images, index in (("train", train, chosen), ("test", test, counted)):
                pixels = images.x.permute(0, 2, 3, 1).cpu().numpy()
                for i in index.tolist():
                    Image.fromarray(badnets(np.array(Image.fromarray(pixels[i])))).save(
                        Path(folder) / f"{part}{i}.png"
                    )

    n = len(chosen) + len(counted)
    return alternate(
        {"PIL and PNG files, one by one": (usual, n), "ours": (ours, n)}, rounds, train.x.device
    )


@in_one_line()
def main() -> None:
    given = arguments(__doc__, rounds=9)
    speeds = measure(
        data(given.dataset, given.data, 50_000, given.device),
        data(given.dataset, given.data, 10_000, given.device),
        given.rounds,
    )
    show(
        f"poisoning, BadNets, 5,000 training and 9,000 test images, {torch.get_num_threads()} "
        "threads",
        "images/s",
        speeds,
        "PIL and PNG files, one by one",
    )
    keep("poisoning", given, speeds)


if __name__ == "__main__":
    main()

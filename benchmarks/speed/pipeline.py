"""Augmented batches without a model: ``python -m benchmarks.speed.pipeline``. Crop, flip and cutout
of CBD's protocol, batches of 64 floats.

The usual way, written for this comparison: a Dataset of PIL images, torchvision's transforms, a
DataLoader without worker processes, on as many threads.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from backdoorbench_ext.engine import Engine
from backdoorbench_ext.images import Images
from backdoorbench_ext.protocols import CBD, Protocol

from .timing import Speed, alternate, arguments, data, keep, show


class Pictures(Dataset[Any]):
    """Images as toolboxes hold them: PIL in, a tensor out."""

    def __init__(self, images: Images, rules: Protocol) -> None:
        self.pictures = images.x.permute(0, 2, 3, 1).cpu().numpy()
        self.labels = images.y.tolist()
        h, w = images.x.shape[2:]
        share = rules.cutout**2 / (h * w)
        crop = transforms.RandomCrop((h, w), padding=rules.crop)
        flip = transforms.RandomHorizontalFlip()
        hole = transforms.RandomErasing(p=1, scale=(share, share), ratio=(1, 1), value=0)
        steps = {crop: rules.crop, flip: rules.flip, transforms.ToTensor(): True}
        steps[hole] = rules.cutout
        self.change = transforms.Compose([step for step, wanted in steps.items() if wanted])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.change(Image.fromarray(self.pictures[index])), self.labels[index]


def loader(images: Images, batch: int, rules: Protocol = CBD) -> DataLoader[Any]:
    return DataLoader(Pictures(images, rules), batch, shuffle=True, drop_last=True)


def measure(images: Images, rounds: int, usual: int = 5_000, batch: int = 64) -> dict[str, Speed]:
    """Images a second; the usual way is timed on ``usual`` of them."""
    engine = Engine(CBD, images, device=images.x.device)
    some = loader(images[:usual], batch)

    def ours() -> None:
        for _ in engine.batches(images, batch):
            pass

    def theirs() -> None:
        for _ in some:
            pass

    return alternate(
        {
            "PIL, torchvision, DataLoader": (theirs, min(usual, len(images))),
            "ours": (ours, len(images)),
        },
        rounds,
        images.x.device,
    )


def main() -> None:
    given = arguments(__doc__, rounds=5, threads=1)
    speeds = measure(data(given.dataset, given.data, 50_000, given.device), given.rounds)
    show(
        f"augmented batches, {torch.get_num_threads()} thread",
        "images/s",
        speeds,
        "PIL, torchvision, DataLoader",
    )
    keep("pipeline", given, speeds)


if __name__ == "__main__":
    main()

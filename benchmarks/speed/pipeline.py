"""Augmented batches without a model: ``python -m benchmarks.speed.pipeline``. Crop, flip and cutout
of CBD's protocol, batches of 64 floats.

The usual way, written for this comparison: a Dataset of PIL images, torchvision's transforms, a
DataLoader without worker processes, on as many threads. Large images are usually decoded whenever
they are drawn: with ``--dataset imagenette`` that is timed, too, of JPEG in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.images import Images
from backdoorbench_ext.protocols import CBD, Protocol

from .timing import Speed, alternate, arguments, data, keep, show

# pixels a side from which images are usually kept as files
LARGE = 64


class Pictures(Dataset[Any]):
    """Images as toolboxes hold them: PIL in, a tensor out; ``jpeg``: decoded each time."""

    def __init__(self, images: Images, rules: Protocol, jpeg: bool = False) -> None:
        pixels = images.x.permute(0, 2, 3, 1).cpu().numpy()
        self.pictures = [encoded(image) for image in pixels] if jpeg else pixels
        self.open: Callable[[Any], Image.Image] = Image.open if jpeg else Image.fromarray
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
        return self.change(self.open(self.pictures[index])), self.labels[index]


def encoded(pixels: Any) -> io.BytesIO:
    """uint8 (h, w, 3) as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file


def loader(
    images: Images, batch: int, rules: Protocol = CBD, jpeg: bool = False
) -> DataLoader[Any]:
    return DataLoader(Pictures(images, rules, jpeg), batch, shuffle=True, drop_last=True)


def measure(images: Images, rounds: int, usual: int = 5_000, batch: int = 64) -> dict[str, Speed]:
    """Images a second; the usual way is timed on ``usual`` of them."""
    engine = Engine(CBD, images, device=images.x.device)
    some = min(usual, len(images))
    ways: dict[str, Any] = {
        "PIL, torchvision, DataLoader": (loader(images[:some], batch), some),
    }
    if images.x.shape[-1] >= LARGE:
        ways["JPEG, torchvision, DataLoader"] = (loader(images[:some], batch, jpeg=True), some)

    def passed(batches: Iterable[Any]) -> None:
        for _ in batches:
            pass

    timed: dict[str, tuple[Callable[[], None], int]] = {
        name: (partial(passed, batches), count) for name, (batches, count) in ways.items()
    }
    timed["ours"] = (lambda: passed(engine.batches(images, batch)), len(images))
    return alternate(timed, rounds, images.x.device)


@in_one_line()
def main() -> None:
    given = arguments(__doc__, rounds=5, threads=1)
    # a third of a gigabyte of large images
    count = 2_000 if given.dataset == "imagenette" else 50_000
    speeds = measure(data(given.dataset, given.data, count, given.device), given.rounds)
    show(
        f"augmented batches, {torch.get_num_threads()} thread",
        "images/s",
        speeds,
        "PIL, torchvision, DataLoader",
    )
    keep("pipeline", given, speeds)


if __name__ == "__main__":
    main()

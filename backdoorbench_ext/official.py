"""Data sets as their makers hand them out, where torchvision has no loader for what lies there."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from .errors import InputError, reason
from .reading import content

# Fashion-MNIST's types of numbers in the third byte of a file: bytes alone are used
BYTES = 0x08
TINY = "tiny-imagenet-200"
# files with their labels
Files = list[tuple[Path, int]]


def idx(file: Path) -> np.ndarray:
    """An array of bytes in the IDX format of MNIST (https://yann.lecun.com/exdb/mnist), as it is or
    compressed by gzip.

    Raises:
        InputError: damaged.
    """
    data = content(file)
    try:
        if file.suffix == ".gz":
            data = gzip.decompress(data)
        zero = int.from_bytes(data[:2], "big")
        kind, axes = data[2:4]
        if zero or kind != BYTES:
            raise ValueError("not an IDX file of bytes")
        sizes = np.frombuffer(data, ">u4", axes, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(sizes)
    except (ValueError, IndexError, EOFError, OSError) as error:
        raise InputError(f"{file}: damaged ({reason(error)})") from error


def fashion(root: Path) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Fashion-MNIST's training and test images, uint8 (n, 28, 28), and labels, from a folder that
    holds its four files, or torchvision's; None where they are not.
    """
    for folder in (root, root / "fashion-mnist", root / "FashionMNIST" / "raw"):
        for suffix in ("", ".gz"):
            names = [f"{part}-{what}-ubyte{suffix}" for part in ("train", "t10k") for what in PARTS]
            files = [folder / name for name in names]
            if all(file.is_file() for file in files):
                arrays = [idx(file) for file in files]
                return [(arrays[0], arrays[1]), (arrays[2], arrays[3])]
    return None


PARTS = ("images-idx3", "labels-idx1")


def tiny_imagenet(root: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """Tiny ImageNet's training and validation images, whose labels are known, and its classes.

    Raises:
        InputError: not there, or an annotation of a class or an image that is not.
    """
    folder = root / TINY
    train = folder / "train"
    told = folder / "val" / "val_annotations.txt"
    if not train.is_dir() or not told.is_file():
        raise InputError(
            f"tiny_imagenet: {folder} is not there, or lacks train/ or {told.name}: unpack "
            f"{TINY}.zip (http://cs231n.stanford.edu) into {root}"
        )
    classes = tuple(sorted(place.name for place in train.iterdir() if place.is_dir()))
    labels = {name: label for label, name in enumerate(classes)}
    seen = [
        (file, labels[name])
        for name in classes
        for file in sorted((train / name / "images").glob("*.JPEG"))
    ]
    held: Files = []
    for line in content(told).decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        file = folder / "val" / "images" / name
        if not rest or rest[0] not in labels or not file.is_file():
            raise InputError(f"{told}: no class or no image of {line[:60]!r}")
        held.append((file, labels[rest[0]]))
    return seen, held, classes

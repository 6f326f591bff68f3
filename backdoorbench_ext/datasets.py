"""Data sets by name, as uint8 tensors: ``load("cifar10[train=10000,test=2000]", root)``.

``digits`` is made here and needs no file; others are read from ``root`` (an ``.npz`` of that name
if there is one, the official files otherwise); ``folder:PATH`` and ``npz:PATH`` are the user's own.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from . import official
from .catalogue import DATASETS
from .digits import digits
from .errors import InputError, NoData, nearest, one_line, reason
from .images import Images
from .progress import say
from .reading import SUFFIXES, arrays, parsed, picture, place
from .registry import parse

NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
# pixels that images of several sizes are brought to, unless [size=N] says otherwise
SIDES = {"imagenette": 224, "gtsrb": 32, "tiny_imagenet": 64}
DOWNLOADS = {
    "cifar10": "CIFAR-10, 163 MiB",
    "gtsrb": "GTSRB, 263 MiB",
    "imagenette": "Imagenette, 1.45 GiB",
    "cifar100": "CIFAR-100, 161 MiB",
    "svhn": "SVHN, 235 MiB",
    "fashion_mnist": "Fashion-MNIST, 30 MiB",
}
# of classes, in the order of their numbers
NAMES = {
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    "imagenette": (
        *("tench", "English springer", "cassette player", "chain saw", "church"),
        *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
    ),
    "digits": tuple("0123456789"),
    "svhn": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
}
# what torchvision unpacks its files into
FOLDERS = ("cifar-10-batches-py", "gtsrb", "imagenette2")
# the order of a folder's classes, where it is not that of their names
CLASSES = "classes.json"
# pixels of a side that images may be brought to
LARGEST_SIDE = 4096
Splits = tuple[Images, Images]


def load(text: str, root: Path | None = None, *, download: bool = False) -> Splits:
    """The training and the test images of a data set.

    Args:
        text: a name with options; ``train=`` and ``test=`` take a subset, the same in every run: a
            class-balanced one of that size, or that share (0.05) of every class.
        root: folder of the files (``--data``); only ``digits``, ``folder:`` and ``npz:`` need none.
        download: let torchvision download what is missing into ``root``.

    Raises:
        InputError: an unknown name or option, a missing or damaged file, an empty class, a label
            out of range, mixed sizes.
    """
    name, options = parse(text)
    kind, colon, path = name.partition(":")
    if colon and kind == "folder":
        train, test = _folder(place(path), options.pop("size", None))
    elif colon and kind == "npz":
        train, test = _npz(place(path))
    elif name == "digits":
        train, test = digits()
    elif name in DATASETS:
        train, test = _known(name, root, download, options)
    else:
        raise nearest(name, DATASETS, "datasets")
    for option in options:
        if option not in ("train", "test"):
            raise nearest(option, ("train", "test"), f"options of {name}")
    for what, split in (("training", train), ("test", test)):
        _check(f"{name}: {what} set", split)
    sizes = [f"{split.x.shape[3]}x{split.x.shape[2]}" for split in (train, test)]
    if sizes[0] != sizes[1]:
        raise InputError(f"{name}: training images are {sizes[0]}, test images {sizes[1]}")
    return _subset(train, options.get("train"), f"{name}[train]"), _subset(
        test, options.get("test"), f"{name}[test]"
    )


def digest(splits: Sequence[Images]) -> str:
    """The SHA-256, in 16 hexadecimal digits, of the pixels, the labels and the names of the classes
    of the sets.
    """
    hashed = hashlib.sha256()
    for images in splits:
        for part in (images.x, images.y):
            hashed.update(str(tuple(part.shape)).encode())
            hashed.update(part.cpu().contiguous().numpy().data)
        hashed.update("\n".join(images.classes).encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()[:16]


def _check(where: str, images: Images) -> None:
    n = len(images.classes)
    if len(images) == 0:
        raise InputError(f"{where} is empty")
    if n < 2:
        raise InputError(f"{where} has {n} class: an attack needs a target and another class")
    if (
        images.x.dtype != torch.uint8
        or images.x.dim() != 4
        or images.x.shape[1] != 3
        or min(images.x.shape) == 0
        or len(images.x) != len(images.y)
    ):
        raise InputError(
            f"{where}: expected uint8 images (n, h, w, 3) with a label each, got "
            f"{tuple(images.x.shape)} and {len(images.y)} labels"
        )
    low = int(images.y.min())
    high = int(images.y.max())
    if low < 0 or high >= n:
        raise InputError(
            f"{where}: label {low if low < 0 else high} is out of range, there are {n} classes"
        )
    counts = images.y.bincount(minlength=n)
    if (counts == 0).any():
        raise InputError(f"{where}: class {images.classes[int(counts.argmin())]!r} has no image")


def _subset(images: Images, n: object, where: str) -> Images:
    """The same number of images of every class, as far as ``n`` divides, or the same share, in the
    order of the set.
    """
    if n is None:
        return images
    classes = len(images.classes)
    if isinstance(n, float) and 0 < n <= 1:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        shares = [order[images.y[order] == label] for label in range(classes)]
        return images[
            torch.cat([own[: max(1, round(n * len(own)))] for own in shares]).sort().values
        ]
    if not isinstance(n, int) or isinstance(n, bool) or n < classes:
        raise InputError(
            f"{where} must be a number of images, at least one a class ({classes}), or a share "
            f"like 0.05, not {n!r}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept = []
    for label in range(classes):
        wanted = n // classes + (label < n % classes)
        chosen = order[images.y[order] == label][:wanted]
        if len(chosen) < wanted:
            raise InputError(
                f"{where}={n} needs {wanted} images of class {images.classes[label]!r}, there are "
                f"{len(chosen)}"
            )
        kept.append(chosen)
    return images[torch.cat(kept).sort().values]


def _npz(path: Path) -> Splits:
    parts = arrays(path, NPZ_KEYS)
    classes = tuple(_word(c) for c in parts["classes"].ravel())

    def split(which: str) -> Images:
        x = parts[f"{which}_images"]
        y = parts[f"{which}_labels"]
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3:
            raise InputError(
                f"{path}: {which}_images must be uint8 (n, h, w, 3), not {x.dtype} {x.shape}"
            )
        if y.shape == (len(x), 1):
            # as MedMNIST has them
            y = y[:, 0]
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
            raise InputError(
                f"{path}: {which}_labels must be {len(x)} integers, not {y.dtype} {y.shape}"
            )
        return Images(
            torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(y.astype(np.int64)),
            classes,
        )

    return split("train"), split("test")


def _word(name: object) -> str:
    """The name of a class; older files hold bytes."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _folder(path: Path, size: object = None) -> Splits:
    """``train/<class>/*`` and ``test/<class>/*`` or ``val/<class>/*``; ``size``: resize every image
    to that square.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    test = path / "test" if (path / "test").is_dir() else path / "val"
    for part in (path / "train", test):
        if not part.is_dir():
            there = ", ".join(sorted(p.name for p in _seen(path))[:10]) or "nothing"
            raise InputError(
                f"{path}: expected the folders train/ and test/ or val/, {part.name}/ is missing; "
                f"there is {there}"
            )
    train = _classes(path / "train")
    other = _classes(test)
    if set(train) != set(other):
        raise InputError(
            f"{path}: train/ and {test.name}/ differ in the classes "
            f"{', '.join(sorted(set(train) ^ set(other))[:10])}"
        )
    classes = _ordered(path, sorted(train))

    def split(folders: dict[str, Path]) -> Images:
        files = [(f, y) for y, name in enumerate(classes) for f in _pictures(folders[name])]
        return _read(files, tuple(classes), size, str(folders[classes[0]].parent))

    return split(train), split(other)


def _seen(folder: Path) -> list[Path]:
    """What lies in a folder, but for what systems and notebooks hide there."""
    try:
        return [p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX"]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error


def _classes(part: Path) -> dict[str, Path]:
    """The folders of the classes by their names, in which letters with accents are one way."""
    folders = [p for p in _seen(part) if p.is_dir()]
    if not folders:
        raise InputError(f"{part}: no folders of classes; expected {part.name}/<class>/<image>")
    named = {unicodedata.normalize("NFC", p.name): p for p in folders}
    if len(named) < len(folders):
        raise InputError(f"{part}: two classes have the same name, once the accents are joined")
    return named


def _pictures(folder: Path) -> list[Path]:
    """The images of a class; what else lies there is said."""
    there = sorted(_seen(folder))
    found = [p for p in there if p.suffix.lower() in SUFFIXES]
    if not found:
        inner = [p.name for p in there if p.is_dir()]
        hint = f"; its images may lie one folder deeper, in {inner[0]}/" if inner else ""
        raise InputError(f"{folder}: no images ({', '.join(SUFFIXES)}){hint}")
    kinds = Counter(p.suffix or "no suffix" for p in there if p.suffix.lower() not in SUFFIXES)
    if kinds:
        words = ", ".join(f"{n} of {kind}" for kind, n in kinds.items())
        say(Console(stderr=True), f"{folder}: left out, since they are no images: {words}")
    return found


def _ordered(path: Path, names: list[str]) -> list[str]:
    """The classes in the order that ``bbx poison`` kept, else in that of their names."""
    file = path / CLASSES
    if not file.exists():
        return names
    kept = [unicodedata.normalize("NFC", name) for name in parsed(file, list[str])]
    if sorted(kept) != names:
        raise InputError(f"{file}: its classes are not the folders of train/")
    return kept


def _read(
    files: Sequence[tuple[Path, int]], classes: tuple[str, ...], size: object, where: str
) -> Images:
    """Decode image files; all must have one size unless ``size`` (pixels, square) is given."""
    if size is not None and (type(size) is not int or not 1 <= size <= LARGEST_SIDE):
        raise InputError(
            f"{where}: size must be a number of pixels up to {LARGEST_SIDE}, not {size!r}"
        )
    images: list[Tensor] = []
    steps: Iterable[tuple[Path, int]] = files
    if len(files) > 2000:
        told = f"reading {one_line(where)}"
        steps = track(files, escape(told), console=Console(stderr=True))
    for file, _ in steps:
        images.append(torch.from_numpy(picture(file, size)).permute(2, 0, 1))
        if images[-1].shape != images[0].shape:
            h, w = images[0].shape[1:]
            raise InputError(
                f"{file}: {images[-1].shape[2]}x{images[-1].shape[1]} pixels, the images before it "
                f"have {w}x{h}; give [size=N] to resize all"
            )
    if not images:
        raise InputError(f"{where}: no images")
    return Images(torch.stack(images), torch.tensor([label for _, label in files]), classes)


def _known(name: str, root: Path | None, download: bool, options: dict[str, object]) -> Splits:
    if root is None:
        words = " to download into" if download else ""
        raise NoData(f"{name} needs --data DIR, the folder of its files{words}")
    size = options.pop("size", SIDES.get(name))
    if not root.is_dir() and not download:
        raise InputError(f"--data {root}: no such folder")
    if (root / f"{name}.npz").is_file():
        return _npz(root / f"{name}.npz")
    if download and name not in DOWNLOADS:
        raise InputError(f"{name}: torchvision cannot download it; unpack it into {root}")
    if download:
        words = f"downloading {DOWNLOADS[name]}, into {root}, unless it is there"
        say(Console(stderr=True), words)
    try:
        return _official(name, root, download, size)
    except InputError:
        raise
    # torchvision raises plain RuntimeError for missing, pickle and zip errors for damaged files
    except Exception as error:
        # torchvision's advice is for those who call it
        why = reason(error).partition(" You can use download")[0]
        hint = ""
        if name in DOWNLOADS and not download:
            hint = f"; --download fetches {DOWNLOADS[name]}, into it"
        if root.name in FOLDERS:
            hint = f"; give the folder that {root.name} lies in"
        raise InputError(f"{name}: not readable in {root} ({why}){hint}") from error


def _official(name: str, root: Path, download: bool, size: object) -> Splits:
    """A data set's official files, read by torchvision where it can."""
    import torchvision

    sets = torchvision.datasets
    if name in ("cifar10", "cifar100"):
        reader = sets.CIFAR10 if name == "cifar10" else sets.CIFAR100
        parts = [reader(root, train=train, download=download) for train in (True, False)]
        shown = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
        labels = [torch.tensor(part.targets) for part in parts]
        return _pair(shown, labels, tuple(parts[0].classes))
    if name == "svhn":
        digits_ = [sets.SVHN(root, split=split, download=download) for split in ("train", "test")]
        shown = [torch.from_numpy(part.data).contiguous() for part in digits_]
        labels = [torch.from_numpy(part.labels).long() for part in digits_]
        return _pair(shown, labels, NAMES["svhn"])
    if name == "fashion_mnist":
        if official.fashion(root) is None:
            sets.FashionMNIST(root, download=download)
        found = official.fashion(root) or []
        # a border of two pixels, and three channels: the pixels stay as they are
        shown = [
            F.pad(torch.from_numpy(x.copy())[:, None], (2, 2, 2, 2)).repeat(1, 3, 1, 1)
            for x, _ in found
        ]
        labels = [torch.from_numpy(y.astype(np.int64)) for _, y in found]
        return _pair(shown, labels, NAMES["fashion_mnist"])
    if name == "tiny_imagenet":
        seen, held, classes = official.tiny_imagenet(root)
        return (
            _read(seen, classes, size, "tiny_imagenet train"),
            _read(held, classes, size, "tiny_imagenet val"),
        )
    if name == "gtsrb":
        signs = [sets.GTSRB(root, split=split, download=download) for split in ("train", "test")]
        classes = tuple(f"{i:05d}" for i in range(43))
        train, test = (
            _read([(Path(f), y) for f, y in s._samples], classes, size, f"gtsrb {s._split}")
            for s in signs
        )
        return train, test
    sets.Imagenette(root, download=download)
    train, test = _folder(root / "imagenette2", size)
    words = tuple(sets.Imagenette._WNID_TO_CLASS.get(c, (c,))[0] for c in train.classes)
    return replace(train, classes=words), replace(test, classes=words)


def _pair(shown: Sequence[Tensor], labels: Sequence[Tensor], classes: tuple[str, ...]) -> Splits:
    train, test = (Images(x, y, classes) for x, y in zip(shown, labels, strict=True))
    return train, test

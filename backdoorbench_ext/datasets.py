"""Data sets by name, as uint8 tensors: ``load("cifar10[train=10000,test=2000]", root)``.

``digits`` is made here and needs no file; ``cifar10``, ``gtsrb`` and ``imagenette`` are read from
``root`` (an ``.npz`` of that name if there is one, torchvision's files otherwise); ``folder:PATH``
and ``npz:PATH`` are the user's own.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor

from .catalogue import DATASETS
from .errors import InputError, nearest
from .images import Images, to_uint8
from .registry import parse

NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
# pixels that images of several sizes are brought to, unless [size=N] says otherwise
SIDES = {"imagenette": 224, "gtsrb": 32}
DOWNLOADS = {
    "cifar10": "CIFAR-10, 163 MiB",
    "gtsrb": "GTSRB, 263 MiB",
    "imagenette": "Imagenette, 1.45 GiB",
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")
# the order of a folder's classes, where it is not that of their names
CLASSES = "classes.json"
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
        train, test = _folder(Path(path).expanduser(), options.pop("size", None))
    elif colon and kind == "npz":
        train, test = _npz(Path(path).expanduser())
    elif name == "digits":
        train, test = digits()
    elif name in DOWNLOADS:
        train, test = _known(name, root, download, options)
    else:
        raise nearest(name, DATASETS, "datasets")
    for option in options:
        if option not in ("train", "test"):
            raise nearest(option, ("train", "test"), f"options of {name}")
    for what, split in (("training", train), ("test", test)):
        _check(f"{name}: {what} set", split)
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
        hashed.update("\n".join(images.classes).encode())
    return hashed.hexdigest()[:16]


def _check(where: str, images: Images) -> None:
    n = len(images.classes)
    if len(images) == 0:
        raise InputError(f"{where} is empty")
    if (
        images.x.dtype != torch.uint8
        or images.x.dim() != 4
        or images.x.shape[1] != 3
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
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            missing = [key for key in NPZ_KEYS if key not in data]
            if missing:
                raise InputError(
                    f"{path}: lacks {', '.join(missing)}; expected the keys {', '.join(NPZ_KEYS)}"
                )
            arrays = {key: data[key] for key in NPZ_KEYS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged, or no .npz file of plain arrays ({error})") from error
    classes = tuple(str(c) for c in arrays["classes"].ravel())

    def split(which: str) -> Images:
        x = arrays[f"{which}_images"]
        y = arrays[f"{which}_labels"]
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3:
            raise InputError(
                f"{path}: {which}_images must be uint8 (n, h, w, 3), not {x.dtype} {x.shape}"
            )
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


def _folder(path: Path, size: object = None) -> Splits:
    """``train/<class>/*`` and ``test/<class>/*`` or ``val/<class>/*``; ``size``: resize every image
    to that square.
    """
    test = path / "test" if (path / "test").is_dir() else path / "val"
    for part in (path / "train", test):
        if not part.is_dir():
            raise InputError(
                f"{path}: expected the folders train/ and test/ or val/, {part.name}/ is missing"
            )
    classes = sorted(p.name for p in _seen(path / "train") if p.is_dir())
    other = sorted(p.name for p in _seen(test) if p.is_dir())
    if classes != other:
        raise InputError(
            f"{path}: train/ and {test.name}/ differ in the classes "
            f"{', '.join(sorted(set(classes) ^ set(other)))}"
        )
    classes = _ordered(path, classes)

    def split(part: Path) -> Images:
        files = [
            (f, label)
            for label, name in enumerate(classes)
            for f in sorted(_seen(part / name))
            if f.suffix.lower() in SUFFIXES
        ]
        return _read(files, tuple(classes), size, str(part))

    return split(path / "train"), split(test)


def _seen(folder: Path) -> list[Path]:
    """What lies in a folder, but for what systems and notebooks hide there."""
    return [p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX"]


def _ordered(path: Path, names: list[str]) -> list[str]:
    """The classes in the order that ``bbx poison`` kept, else in that of their names."""
    file = path / CLASSES
    if not file.is_file():
        return names
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if sorted(kept) == names:
            return list(kept)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: not a list of classes ({error})") from error
    raise InputError(f"{file}: its classes are not the folders of train/")


def _read(
    files: Sequence[tuple[Path, int]], classes: tuple[str, ...], size: object, where: str
) -> Images:
    """Decode image files; all must have one size unless ``size`` (pixels, square) is given."""
    if size is not None and (not isinstance(size, int) or size < 1):
        raise InputError(f"{where}: size must be a number of pixels, not {size!r}")
    arrays: list[Tensor] = []
    steps: Iterable[tuple[Path, int]] = files
    if len(files) > 2000:
        steps = track(files, f"reading {where}", console=Console(stderr=True))
    for file, _ in steps:
        try:
            with Image.open(file) as image:
                rgb = (
                    image.convert("RGB")
                    if size is None
                    else image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
                )
            arrays.append(torch.from_numpy(np.array(rgb)).permute(2, 0, 1))
        except (
            OSError,
            UnidentifiedImageError,
            Image.DecompressionBombError,
            SyntaxError,
            ValueError,
        ) as error:
            raise InputError(f"{file}: not a readable image ({error})") from error
        if arrays[-1].shape != arrays[0].shape:
            h, w = arrays[0].shape[1:]
            raise InputError(
                f"{file}: {arrays[-1].shape[2]}x{arrays[-1].shape[1]} pixels, the images before it "
                f"have {w}x{h}; give [size=N] to resize all"
            )
    if not arrays:
        raise InputError(f"{where}: no images")
    return Images(torch.stack(arrays), torch.tensor([label for _, label in files]), classes)


def _known(name: str, root: Path | None, download: bool, options: dict[str, object]) -> Splits:
    if root is None:
        words = " to download into" if download else ""
        raise InputError(f"{name} needs --data DIR, the folder of its files{words}")
    size = options.pop("size", SIDES.get(name))
    if (root / f"{name}.npz").is_file():
        return _npz(root / f"{name}.npz")
    if download:
        Console(stderr=True).print(
            f"downloading {DOWNLOADS[name]}, into {root}, unless it is there"
        )
    try:
        return _torchvision(name, root, download, size)
    except InputError:
        raise
    # torchvision raises plain RuntimeError for missing, pickle and zip errors for damaged files
    except Exception as error:
        hint = "" if download else f"; --download fetches {DOWNLOADS[name]}, into it"
        raise InputError(
            f"{name}: not readable in {root} ({str(error).splitlines()[0]}){hint}"
        ) from error


def _torchvision(name: str, root: Path, download: bool, size: object) -> Splits:
    import torchvision

    sets = torchvision.datasets
    if name == "cifar10":
        parts = [sets.CIFAR10(root, train=train, download=download) for train in (True, False)]
        classes = tuple(parts[0].classes)
        train, test = (
            Images(
                torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(p.targets),
                classes,
            )
            for p in parts
        )
        return train, test
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


def digits() -> Splits:
    """scikit-learn's handwritten digits on noisy cards: 4,000 training and 1,000 test images,
    32x32, colour.

    1,297 of the 1,797 scans (8x8, UCI, Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49)
    make the training set and the other 500 the test set. Each image shows one scan, rotated, scaled
    and shifted, lighter or darker than a card of random colour; around the card lies strong
    coloured noise. Made so that what the defenses assume holds: the low contrast makes the class
    slower to learn than a trigger, and the noise, which an image network can look past, lies over
    the digit in the frequency spectrum.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = torch.from_numpy(data.images).float().div(16)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(0))
    classes = tuple(str(i) for i in range(10))
    parts = ((order[:1297], 4000, 1), (order[1297:], 1000, 2))
    train, test = (
        _compose(scans[index], labels[index], n, torch.Generator().manual_seed(seed), classes)
        for index, n, seed in parts
    )
    return train, test


def _compose(
    scans: Tensor, labels: Tensor, n: int, rng: torch.Generator, classes: tuple[str, ...]
) -> Images:
    side = 32

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    def noise(channels: int, grain: int) -> Tensor:
        """Smooth random texture around 0, (n, channels, side, side)."""
        return F.interpolate(
            uniform(n, channels, grain, grain) - 0.5, side, mode="bicubic", align_corners=False
        )

    def placed(drawing: Tensor, scale: Tensor) -> Tensor:
        """Drawings (n, 1, 8, 8) at ``scale`` of the image's side, moved and turned as each image
        demands.
        """
        cos = angle.cos() / scale
        sin = angle.sin() / scale
        rows = torch.stack((torch.stack((cos, sin), 1), torch.stack((-sin, cos), 1)), 1)
        grid = F.affine_grid(
            torch.cat((rows, -(rows @ shift[:, :, None])), 2),
            [n, 1, side, side],
            align_corners=False,
        )
        return F.grid_sample(drawing, grid, align_corners=False)

    which = torch.arange(n) % len(scans)
    scale = 0.6 + 0.15 * uniform(n)
    angle = 0.5 * (uniform(n) - 0.5)
    shift = 0.9 * (1 - scale[:, None]) * (2 * uniform(n, 2) - 1)
    ink = placed(scans[which, None], scale)
    card = placed(torch.ones(n, 1, 8, 8), 1.05 * scale)
    tone = torch.where(uniform(n, 1, 1, 1) < 0.5, -0.3, 0.3) * (0.7 + 0.3 * uniform(n, 3, 1, 1))
    level = 0.35 + 0.3 * uniform(n, 3, 1, 1)
    image = level + 0.06 * noise(3, 5) + tone * ink + (1 - card) * noise(3, 12)
    shuffled = torch.randperm(n, generator=rng)
    return Images(to_uint8(image)[shuffled], labels[which][shuffled], classes)

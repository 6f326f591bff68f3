"""BackdoorBench's record format: ``attack_result.pt`` and its PNG folders, read as files of
strangers and written as its own.

The format is described by BackdoorBench's ``utils/save_load_attack.py`` and
``utils/bd_dataset_v2.py`` (https://github.com/SCLBD/BackdoorBench). Nothing in a file is executed:
tensors, numpy arrays and plain containers are let through, pictures as bytes, everything else is
refused by name.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError, one_line, reason, told
from ..files import whole_folder, write_whole
from ..images import Images, Poisoned
from ..models import Net, TorchvisionNet
from ..reading import content as read_content
from ..reading import picture as read_picture
from ..reading import regular

KEYS = (
    "model_name",
    "num_classes",
    "model",
    "data_path",
    "img_size",
    "clean_data",
    "bd_train",
    "bd_test",
)
STATE = ("bd_data_container", "original_index_array", "poison_indicator")


class Picture:
    """Stands for a pickled PIL image: takes its state and does nothing with it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def allowed() -> list[Any]:
    """What a record may hold beside tensors and plain values, under the names of both NumPy 1 and
    2.
    """
    core = np._core if hasattr(np, "_core") else np.core
    functions = [
        (getattr(core.multiarray, name), f"numpy.{place}.multiarray.{name}")
        for place in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ]
    pictures = [(Picture, name) for name in ("PIL.Image.Image", "PIL.PngImagePlugin.PngImageFile")]
    return [
        *functions,
        *pictures,
        np.ndarray,
        np.dtype,
        type(np.dtype("int64")),
        type(np.dtype("float64")),
    ]


def load(file: Path) -> Any:
    """The content of a file of ``torch.save`` that holds no more than a record needs.

    Raises:
        InputError: no such file, damaged, or something in it is not allowed; it is named, and was
            not executed.
    """
    regular(file)
    try:
        _check_archive(file)
        with torch.serialization.safe_globals(allowed()), warnings.catch_warnings():
            # of other versions of pickle
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    # whatever damaged bytes bring about, from zip, pickle or torch
    except Exception as error:
        named = re.search(r"(?:GLOBAL|global:?|function|class) ([\w.]+\.[\w.]+)", str(error))
        if named and "nsupported" in str(error):
            raise InputError(
                f"{file}: refused, it holds {named[1]}, which a record does not need; nothing was "
                "executed"
            ) from error
        # PyTorch goes on to advise to load it without care: that is not passed on
        inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        why = f"{type(error).__name__}: {inner[1]}" if inner else told(error)
        raise InputError(f"{file}: damaged, or no file of torch.save ({why[:200]})") from error


def _check_archive(file: Path) -> None:
    """Raises: ValueError: an archive that is packed, as ``torch.save`` never does, or a program."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size:
                raise ValueError(f"{one_line(info.filename)[:80]} in it is packed")
            if info.filename.endswith("/constants.pkl"):
                raise ValueError("it is a program of TorchScript")


@dataclass(frozen=True)
class State:
    """One of a record's two sets: which images of the clean set it holds (``index``), which of
    these are replaced, and by what.
    """

    index: np.ndarray
    replaced: np.ndarray
    pictures: Mapping[int, Path | Picture]
    # (given, original)
    labels: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Record:
    """A record whose structure has been checked; its pictures are read by ``poisoned``."""

    folder: Path
    model_name: str
    model: Mapping[str, Tensor]
    dataset: str
    classes: int
    size: tuple[int, int]
    train: State | None
    test: State

    @property
    def targets(self) -> list[int]:
        """The labels that triggered test images are sent to."""
        return sorted({given for given, _ in self.test.labels.values()})

    @property
    def rates(self) -> tuple[float, float]:
        """The least and the highest share of the training images that may be poisoned, cover images
        not counted; 0 if the record has none.

        A changed image of the target class may be either: the format does not say.
        """
        if self.train is None:
            return 0.0, 0.0
        labels = [
            self.train.labels[i]
            for i in self.train.index[self.train.replaced[self.train.index]].tolist()
        ]
        n = len(self.train.index)
        return sum(given != original for given, original in labels) / n, sum(
            not self.covers(*pair) for pair in labels
        ) / n

    @property
    def rate(self) -> float:
        """The higher of ``rates``: exact for records without cover images."""
        return self.rates[1]

    def covers(self, given: int, original: int) -> bool:
        """Whether a replaced image is a cover image: it kept its label, which is not the target."""
        return given == original and self.targets != [given]

    def poisoned(self, which: str, clean: Images) -> Poisoned:
        """The images of ``which`` = "train" or "test", from the clean set that the record was made
        from, in the record's order.

        Raises:
            InputError: another clean set, or a picture that cannot be read or has another size.
        """
        state = self.train if which == "train" else self.test
        if state is None:
            raise InputError(
                f"{self.folder}: holds no poisoned training set: its attack controls the training"
            )
        if (
            len(state.replaced) != len(clean)
            or tuple(clean.x.shape[2:]) != self.size
            or len(clean.classes) != self.classes
        ):
            height, width = clean.x.shape[2:]
            have = f"{len(clean)} images of {width}x{height}, {len(clean.classes)} classes"
            want = f"{len(state.replaced)} of {self.size[1]}x{self.size[0]}, {self.classes} classes"
            raise InputError(
                f"{self.folder}: its {which} set was made from {want}; given are {have}"
            )
        places = [i for i in state.index.tolist() if state.replaced[i]]
        x = clean.x.clone()
        y = clean.y.clone()
        mask = torch.zeros_like(clean.y, dtype=torch.bool)
        cover = mask.clone()
        for i in places:
            given, original = state.labels[i]
            if original != clean.y[i]:
                here = f"here it is of {int(clean.y[i])}: another data set, or another order"
                raise InputError(
                    f"{self.folder}: {which} image {i} was of class {original}, {here}"
                )
            y[i] = given
            cover[i] = self.covers(given, original)
            mask[i] = not cover[i]
        with ThreadPoolExecutor() as pool:
            for i, pixels in zip(
                places,
                pool.map(partial(_pixels, size=self.size), (state.pictures[i] for i in places)),
                strict=True,
            ):
                x[i] = pixels.to(x.device)
        index = torch.from_numpy(state.index).to(clean.y.device)
        return Poisoned(x, y, clean.classes, true=clean.y, mask=mask, cover=cover)[index]

    def fit_to(self, net: Net) -> dict[str, Tensor]:
        """The record's model as the state of ``net``: by name where the names are BackdoorBench's,
        otherwise by position, as it does itself.

        Raises:
            InputError: it does not fit; the first difference is named.
        """
        ours = net.state_dict()
        names = [name for name in ours if name.startswith("backbone.")]
        theirs = [their_name(name, net) for name in names]
        given = (
            self.model
            if set(theirs) == set(self.model)
            else dict(zip(theirs, self.model.values(), strict=False))
        )
        if len(self.model) != len(names):
            raise InputError(
                f"{self.folder}: its {self.model_name} has {len(self.model)} tensors, the network "
                f"here {len(names)}: another architecture"
            )
        for name, their in zip(names, theirs, strict=True):
            if given[their].shape != ours[name].shape:
                shapes = f"{tuple(given[their].shape)}, here {tuple(ours[name].shape)}"
                raise InputError(
                    f"{self.folder}: {their} of its {self.model_name} has the shape {shapes}: "
                    "another architecture"
                )
        return ours | {name: given[their] for name, their in zip(names, theirs, strict=True)}


def _pixels(picture: Path | Picture, size: tuple[int, int]) -> Tensor:
    """uint8 (3, h, w); the size is compared before anything is decoded."""
    if isinstance(picture, Path):
        array = read_picture(picture, formats=("PNG",), sides=(size[1], size[0]))
        return torch.from_numpy(array).permute(2, 0, 1)
    try:
        _, mode, sides, _, data = picture.state
        right = mode == "RGB" and tuple(sides) == (size[1], size[0]) and isinstance(data, bytes)
        if not right or len(data) != 3 * size[0] * size[1]:
            raise ValueError(f"{mode} {sides}, expected RGB {size[1]}x{size[0]}")
    except (ValueError, TypeError) as error:
        raise InputError(f"picture in the record: not one of this record ({error})") from error
    array = np.frombuffer(data, np.uint8).reshape(*size, 3).copy()
    return torch.from_numpy(array).permute(2, 0, 1)


def digest(folder: Path) -> str:
    """The SHA-256 of a record's ``attack_result.pt``."""
    return file_digest(folder / "attack_result.pt")


def file_digest(file: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        InputError: it cannot be read.
    """
    regular(file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def places(file: Path, n: int) -> Tensor:
    """Which of ``n`` images a file names that ``--index`` takes, a place a line: bool (n,).

    Raises:
        InputError: it cannot be read, is empty, or holds something else than places, each once.
    """
    try:
        named = [int(word) for word in read_content(file).decode().split()]
    except ValueError as error:
        raise InputError(f"{file}: must hold a number a line ({reason(error)})") from error
    if not named or len(set(named)) < len(named) or not 0 <= min(named) <= max(named) < n:
        raise InputError(f"{file}: must hold places from 0 to {n - 1}, each once")
    held = torch.zeros(n, dtype=torch.bool)
    held[named] = True
    return held


def read(folder: Path) -> Record:
    """A record, by its folder; everything but the pictures is read and checked.

    Raises:
        InputError: not a record, or one that holds what it must not; one line says what.
    """
    file = folder / "attack_result.pt"
    stat = file.stat() if file.is_file() else None
    return _read(folder, (stat.st_mtime_ns, stat.st_size) if stat else None)


Must = Callable[[bool, str], None]


def _check(content: Any, must: Must) -> None:
    """That everything but the images is of the kinds that BackdoorBench writes."""
    must(isinstance(content, dict), "not a record: no dictionary")
    missing = [key for key in KEYS if key not in content]
    must(not missing, f"not a record of an attack: lacks {', '.join(missing)}")
    classes = content["num_classes"]
    size = content["img_size"]
    model = content["model"]
    must(
        isinstance(content["model_name"], str) and isinstance(content["clean_data"], str),
        "model_name and clean_data must be words",
    )
    must(
        type(classes) is int and 1 < classes < 10**6,
        f"num_classes must be a number of classes, not {classes!r}",
    )
    sound = (
        isinstance(size, (tuple, list))
        and len(size) == 3
        and all(type(n) is int and 0 < n < 10**4 for n in size)
    )
    must(sound, f"img_size must be (height, width, channels), not {size!r}")
    sound = isinstance(model, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) and _plain(v) for k, v in model.items()
    )
    must(sound, "model must be a dictionary of plain tensors")


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor holds its numbers itself, each of them once."""
    stored = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return stored and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


@lru_cache(maxsize=2)
def _read(folder: Path, stamp: object) -> Record:
    content = load(folder / "attack_result.pt")

    def must(condition: bool, what: str) -> None:
        if not condition:
            raise InputError(f"{folder / 'attack_result.pt'}: {what}")

    _check(content, must)
    classes = content["num_classes"]
    size = content["img_size"]
    model = content["model"]
    weights = {name.removeprefix("module."): value for name, value in model.items()}
    train, test = (
        None if content[key] is None else _state(folder, key, content[key], classes, must)
        for key in ("bd_train", "bd_test")
    )
    must(test is not None, "bd_test is missing")
    assert test is not None
    return Record(
        folder,
        content["model_name"],
        weights,
        content["clean_data"],
        classes,
        (size[0], size[1]),
        train,
        test,
    )


def _entry(
    folder: Path, key: str, place: Any, entry: Any, base: Any, must: Must
) -> tuple[Path | Picture, Any]:
    """An image that was replaced, as a file or in the record itself, and its two labels."""
    if base is None:
        must(
            isinstance(entry, tuple) and len(entry) == 3 and isinstance(entry[0], Picture),
            f"{key}: image {place} must be a picture and two labels",
        )
        return entry[0], entry[1:]
    must(
        isinstance(entry, dict) and isinstance(entry.get("path"), str),
        f"{key}: image {place} has no path",
    )
    return _inside(folder, key, base, entry["path"], must), entry.get("other_info")


def _arrays(key: str, part: Any, must: Must) -> tuple[Any, Any, Any]:
    """The container of the images, which images these are, and which of all are replaced."""
    must(
        isinstance(part, dict) and all(name in part for name in STATE),
        f"{key} must hold {', '.join(STATE)}",
    )
    container, index, replaced = (part[name] for name in STATE)
    for name, array in zip(STATE[1:], (index, replaced), strict=True):
        must(
            isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "iuf",
            f"{key}: {name} must be a line of numbers",
        )
    must(
        len(replaced) < 10**8 and bool(np.isin(replaced, (0, 1)).all()),
        f"{key}: poison_indicator must hold 0 and 1",
    )
    inside = index.dtype.kind in "iu" and bool(((index >= 0) & (index < len(replaced))).all())
    must(inside, f"{key}: original_index_array points outside the {len(replaced)} images")
    must(len(np.unique(index)) == len(index), f"{key}: original_index_array names an image twice")
    must(
        isinstance(container, dict) and isinstance(container.get("data_dict"), dict),
        f"{key}: bd_data_container lacks its data_dict",
    )
    return container, index, replaced


def _state(folder: Path, key: str, part: Any, classes: int, must: Must) -> State:
    container, index, replaced = _arrays(key, part, must)
    base = container.get("save_folder_path")
    pictures = {}
    labels = {}
    for place, entry in container["data_dict"].items():
        must(
            isinstance(place, (int, np.integer)) and 0 <= int(place) < len(replaced),
            f"{key}: image {place!r} is outside the {len(replaced)} images",
        )
        picture, info = _entry(folder, key, place, entry, base, must)
        sound = (
            isinstance(info, (list, tuple))
            and len(info) == 2
            and all(isinstance(n, (int, np.integer)) and 0 <= n < classes for n in info)
        )
        must(
            sound,
            f"{key}: the labels of image {place} must be two classes below {classes}, not {info!r}",
        )
        pictures[int(place)] = picture
        labels[int(place)] = (int(info[0]), int(info[1]))
    lacking = [i for i in index[replaced[index] == 1].tolist() if i not in pictures]
    must(
        not lacking,
        f"{key}: image {lacking[0] if lacking else ''} is marked as poisoned, but there is no "
        "picture of it",
    )
    return State(index.astype(np.int64), replaced == 1, pictures, labels)


def _inside(folder: Path, key: str, base: Any, path: str, must: Must) -> Path:
    """Where a stored path lies in the record's folder, whatever the folder was called when the
    record was made.
    """
    must(isinstance(base, str), f"{key}: save_folder_path must be a path")
    must("\0" not in base + path, f"{key}: {path!r} is no path")
    whole = PurePosixPath(path.replace("\\", "/"))
    start = PurePosixPath(base.replace("\\", "/"))
    leaves = f"{key}: {path!r} leaves the record's folder"
    must(".." not in whole.parts and whole.is_relative_to(start), leaves)
    file = folder / start.name / whole.relative_to(start)
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
    # a loop of links; bytes that no file system takes
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{file}: {reason(error)}") from error
    must(inside, leaves)
    return file


def their_name(name: str, net: Net) -> str:
    """What BackdoorBench calls a tensor of a ``Net``'s backbone."""
    name = name.removeprefix("backbone.")
    if isinstance(net.backbone, TorchvisionNet):
        return (
            name.removeprefix("net.")
            if name.startswith("net.")
            else name.replace("fc.", f"{net.backbone.classifier}.", 1)
        )
    block = re.match(r"blocks\.(\d+)\.(.*)", name)
    if block:
        inner = block[2].replace("norm", "bn").replace("shortcut.", "shortcut.0.")
        return f"layer{int(block[1]) // 2 + 1}.{int(block[1]) % 2}.{inner}"
    return name.replace("stem.", "conv1.").replace("fc.", "linear.")


def our_model(name: str) -> str:
    """Our name of a network that BackdoorBench names."""
    return name if name == "preactresnet18" else f"torchvision:{name}"


def known(name: str) -> bool:
    """Whether BackdoorBench knows one of our networks."""
    return name == "preactresnet18" or name.startswith("torchvision:")


def their_model(name: str) -> str:
    """BackdoorBench's name of one of our networks.

    Raises:
        InputError: it knows no such network.
    """
    if known(name):
        return name.removeprefix("torchvision:")
    raise InputError(f"BackdoorBench knows no {name}: --model preactresnet18, or torchvision:NAME")


def save(file: Path, content: Any) -> None:
    """``torch.save``, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(file, buffer.getvalue())


def model_state(model: str, net: nn.Module, classes: int) -> dict[str, Any]:
    """What both kinds of BackdoorBench's files say of a network.

    Raises:
        InputError: a network that BackdoorBench does not know, such as MCCI's pair.
    """
    if not isinstance(net, Net):
        raise InputError(f"BackdoorBench knows no {type(net).__name__}")
    state = {
        their_name(name, net): value.detach().cpu().contiguous()
        for name, value in net.state_dict().items()
        if name.startswith("backbone.")
    }
    return {"model_name": their_model(model), "num_classes": classes, "model": state}


@contextmanager
def written(
    to: Path,
    dataset: str,
    model: str,
    net: nn.Module,
    sets: Mapping[str, tuple[Poisoned, Tensor, int]],
) -> Iterator[Path]:
    """A record that BackdoorBench's ``load_attack_result`` opens; what belongs beside it is to be
    written into the folder that is given, before the record gets its name.

    Args:
        to: the folder, ``record/NAME`` below the toolbox's root; must not exist.
        dataset: its name there; ``model``: ours of the network ``net``.
        sets: "train" and "test": the images, their places in the clean set, and its length.

    Raises:
        InputError: ``to`` exists, lies where BackdoorBench would not find it, or the network is
            none of its.
    """
    check_place(to)
    content: dict[str, Any] = model_state(model, net, len(sets["train"][0].classes))
    h, w = sets["train"][0].x.shape[2:]
    content |= {"data_path": f"./data/{dataset}", "img_size": (h, w, 3), "clean_data": dataset}
    with whole_folder(to) as part:
        for key, (images, places, length) in sets.items():
            content[f"bd_{key}"] = _part(f"bd_{key}_dataset", images, places, length, part, to)
        save(part / "attack_result.pt", content)
        yield part


def _part(
    name: str, images: Poisoned, places: Tensor, length: int, part: Path, to: Path
) -> dict[str, Any]:
    """One of a record's two sets; its pictures are written into the folder ``part``, which will be
    called ``to``.
    """
    changed = (images.mask | images.cover).cpu()
    base = f"{to.as_posix() if to.is_absolute() else './' + to.as_posix()}/{name}"
    indicator = np.zeros(length)
    indicator[places[changed].numpy()] = 1
    entries = {}
    jobs = []
    for i in changed.nonzero().flatten().tolist():
        place = int(places[i])
        label = int(images.y[i])
        original = int(images.true[i])
        entries[place] = {
            "path": f"{base}/{original}/{place}.png",
            "other_info": [label, original],
        }
        jobs.append((part / name / str(original) / f"{place}.png", images.x[i]))
    for folder in {file.parent for file, _ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)

    def draw(file: Path, image: Tensor) -> None:
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file)

    with ThreadPoolExecutor() as pool:
        # listed, or errors would be lost
        list(pool.map(draw, *zip(*jobs, strict=True)))
    return {
        "bd_data_container": {
            "save_folder_path": base,
            "data_dict": entries,
            "save_file_format": ".png",
        },
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": places.numpy().astype(np.int64),
        "poison_indicator": indicator,
        "save_folder_path": base,
    }


def check_place(to: Path) -> None:
    """Raises: InputError: ``to`` exists, or BackdoorBench, which cuts the path at the first
    "record" in it, would look for its data elsewhere.
    """
    if to.exists():
        raise InputError(f"{to} exists already; give another name")
    path = to.resolve()
    first = next((i for i, name in enumerate(path.parts) if "record" in name), None)
    if first is None or path.parts[first] != "record":
        raise InputError(
            f"{to}: BackdoorBench reads records below a folder called record, the first of its "
            "path with that in its name: give record/NAME"
        )

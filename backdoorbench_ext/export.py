"""A poisoned data set as files: PNG folders with a manifest, or one ``.npz``; both are read back by
``folder:`` and ``npz:``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from .datasets import CLASSES
from .engine import Progress
from .errors import InputError
from .files import whole_folder, write_text, write_whole
from .images import Images, Poisoned
from .lab import Lab
from .options import Options
from .suite import Cell, file_name
from .surroundings import surroundings

FORMATS = ("png", "npz")


def poisoned(
    cell: Cell, options: Options, to: Path, form: str, progress: Progress | None = None
) -> dict[str, int]:
    """Write what a cell trains on and is measured by; how many images of each part. ``progress``:
    of what the attack learns, and of the files.

    "png": ``to/train/<label>/``, ``test`` (clean), ``triggered`` (test images with the trigger),
    ``reserve`` (clean, held out of the training set); ``manifest.csv`` has file, label, true label,
    poisoned (1 the trigger, 2 a cover image), ``spec.json`` all that decides the set,
    ``classes.json`` the order of the classes. The folder appears whole or not at all. "npz": the
    same in the file ``to``.

    Raises:
        InputError: ``to`` exists, or as ``Lab.check``.
    """
    if form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    if form == "npz" and to.suffix != ".npz":
        raise InputError(f"{to}: the name must end in .npz")
    if to.exists():
        raise InputError(f"{to} exists already; give another name")
    lab = Lab(cell, options, progress)
    if cell.method("attacks").per_batch:
        raise InputError(f"{cell.attack} poisons the batches of a training: there is no set of it")
    lab.check()
    sets: dict[str, Images] = {
        "train": lab.poisoned,
        "test": lab.test,
        "triggered": lab.triggered,
        "reserve": lab.reserve,
    }
    spec = {key: value for key, value in cell.spec.items() if key != "defense"}
    spec["surroundings"] = surroundings(lab.device)
    if form == "npz":
        _npz(sets, spec, to)
    else:
        folders = folder_names(lab.poisoned.classes)
        with whole_folder(to) as part:
            _png(sets, folders, part, progress)
            write_text(part / CLASSES, json.dumps(folders) + "\n")
            write_text(part / "spec.json", json.dumps(spec, indent=1, sort_keys=True) + "\n")
    return {name: len(images) for name, images in sets.items()}


def folder_names(classes: Sequence[str]) -> list[str]:
    """What the folders of classes are called: parts of a path, no two the same even where capitals
    do not count, none hidden.
    """
    made: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(classes):
        plain = file_name(name)
        plain = f"_{plain}" if plain.startswith(".") else plain
        if plain.casefold() in taken or plain == "__MACOSX":
            plain = f"{plain}-{label}"
        made.append(plain)
        taken.add(plain.casefold())
    return made


def _marks(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """True labels, and 0 clean, 1 poisoned, 2 cover."""
    if not isinstance(images, Poisoned):
        return images.y.cpu().numpy(), np.zeros(len(images), np.uint8)
    return images.true.cpu().numpy(), (images.mask + 2 * images.cover).to(torch.uint8).cpu().numpy()


def _write_png(file: Path, image: np.ndarray[Any, Any]) -> None:
    # OpenCV's own writing ends the process at a name that is no UTF-8
    file.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _png(
    sets: dict[str, Images], classes: Sequence[str], folder: Path, progress: Progress | None
) -> None:
    total = sum(len(images) for images in sets.values())
    done = 0
    rows = []
    with ThreadPoolExecutor() as pool:
        for name, images in sets.items():
            for c in classes:
                (folder / name / c).mkdir(parents=True)
            true, marks = _marks(images)
            labels = images.y.cpu().numpy()
            for index in torch.arange(len(images)).split(1000):
                x = images.x[index.to(images.x.device)]
                # OpenCV writes blue, green, red
                pixels = x.permute(0, 2, 3, 1).flip(3).contiguous().cpu().numpy()
                files = [f"{name}/{classes[labels[i]]}/{i:06d}.png" for i in index.tolist()]
                # listed, or errors would be lost
                list(pool.map(_write_png, [folder / file for file in files], pixels))
                rows += [
                    (file, classes[labels[i]], classes[true[i]], marks[i])
                    for file, i in zip(files, index.tolist(), strict=True)
                ]
                done += len(files)
                if progress:
                    progress("images", done, total)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("file", "label", "true label", "poisoned"))
    writer.writerows(rows)
    write_text(folder / "manifest.csv", text.getvalue())


def _npz(sets: dict[str, Images], spec: dict[str, object], file: Path) -> None:
    arrays: dict[str, Any] = {
        "classes": np.array(sets["train"].classes),
        "spec": np.array(json.dumps(spec, sort_keys=True)),
    }
    for name, images in sets.items():
        true, marks = _marks(images)
        arrays |= {
            f"{name}_images": images.x.permute(0, 2, 3, 1).cpu().numpy(),
            f"{name}_labels": images.y.cpu().numpy(),
        }
        arrays |= {f"{name}_true_labels": true, f"{name}_poisoned": marks}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(file, buffer.getvalue())

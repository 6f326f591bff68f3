"""A poisoned data set as files: PNG folders with a manifest, or one ``.npz``; both are read back by
``folder:`` and ``npz:``.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from .datasets import CLASSES
from .engine import Progress
from .errors import InputError
from .files import write_whole
from .images import Images, Poisoned
from .lab import Lab
from .options import Options
from .suite import Cell
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
        part = to.with_name(f".{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        _png(sets, part, progress)
        classes = [_folder_name(name) for name in lab.poisoned.classes]
        text = json.dumps(classes, ensure_ascii=False)
        (part / CLASSES).write_text(text + "\n", encoding="utf-8")
        (part / "spec.json").write_text(json.dumps(spec, indent=1, sort_keys=True) + "\n")
        part.rename(to)
    return {name: len(images) for name, images in sets.items()}


def _folder_name(label: str) -> str:
    return label.replace("/", "_")


def _marks(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """True labels, and 0 clean, 1 poisoned, 2 cover."""
    if not isinstance(images, Poisoned):
        return images.y.cpu().numpy(), np.zeros(len(images), np.uint8)
    return images.true.cpu().numpy(), (images.mask + 2 * images.cover).to(torch.uint8).cpu().numpy()


def _png(sets: dict[str, Images], folder: Path, progress: Progress | None) -> None:
    total = sum(len(images) for images in sets.values())
    done = 0
    rows = []
    with ThreadPoolExecutor() as pool:
        for name, images in sets.items():
            classes = [_folder_name(name) for name in images.classes]
            for c in classes:
                (folder / name / c).mkdir(parents=True)
            true, marks = _marks(images)
            labels = images.y.cpu().numpy()
            for index in torch.arange(len(images)).split(1000):
                x = images.x[index.to(images.x.device)]
                # OpenCV writes blue, green, red
                pixels = x.permute(0, 2, 3, 1).flip(3).contiguous().cpu().numpy()
                files = [f"{name}/{classes[labels[i]]}/{i:06d}.png" for i in index.tolist()]
                if not all(
                    pool.map(
                        lambda file, image: cv2.imwrite(str(folder / file), image), files, pixels
                    )
                ):
                    raise OSError(f"{folder}: an image could not be written")
                rows += [
                    (file, classes[labels[i]], classes[true[i]], marks[i])
                    for file, i in zip(files, index.tolist(), strict=True)
                ]
                done += len(files)
                if progress:
                    progress("images", done, total)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "true label", "poisoned"))
        writer.writerows(rows)


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

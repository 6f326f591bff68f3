"""Runs in BackdoorBench's Python, in its root folder: ``launch.py transform NAME FOLDER FLAGS...``
or ``launch.py script NAME FOLDER FLAGS...``; and for users ``python -m
backdoorbench_ext.toolbox.launch SCRIPT.py FLAGS...``, any of its scripts, unchanged.

Only the standard library and what BackdoorBench itself needs. Names that newer versions of NumPy
and setuptools have dropped, and that its code still uses, are put back for this process.
"""

import argparse
import importlib
import importlib.resources
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


def resource_stream(package: str, name: str) -> Any:
    """A file of a package, opened for reading: what ``pkg_resources`` had under this name."""
    return importlib.resources.files(package).joinpath(name).open("rb")


def resource_filename(package: str, name: str) -> str:
    """Where a file of a package lies."""
    return str(importlib.resources.files(package.rpartition(".")[0] or package).joinpath(name))


PLAIN_ARRAY = np.asarray


def old_array(x: Any, *args: Any, **more: Any) -> np.ndarray:
    """NumPy's asarray; of rows of several lengths an array of objects, as before NumPy 1.24."""
    try:
        made: np.ndarray = PLAIN_ARRAY(x, *args, **more)
        return made
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        rows = np.empty(len(x), object)
        rows[:] = x
        return rows


def old_names() -> None:
    """np.float, np.infty, np.round_, np.lib.pad, arrays of rows of several lengths, and what of
    pkg_resources is used; and its own records, which torch 2.6 and later would not load.
    """
    for module, name, value in (
        (np, "float", float),
        (np, "infty", np.inf),
        (np, "round_", np.round),
        (np.lib, "pad", np.pad),
    ):
        if not hasattr(module, name):
            setattr(module, name, value)
    changed: Any = np
    changed.asarray = old_array
    try:
        importlib.import_module("pkg_resources")
    except ImportError:
        stub: Any = types.ModuleType("pkg_resources")
        stub.resource_stream = resource_stream
        stub.resource_filename = resource_filename
        sys.modules["pkg_resources"] = stub
    try:
        import torch

        core = np._core if hasattr(np, "_core") else np.core
        safe = [
            core.multiarray._reconstruct,
            core.multiarray.scalar,
            np.ndarray,
            np.dtype,
            type(np.dtype("int64")),
            type(np.dtype("float64")),
        ]
        torch.serialization.add_safe_globals(safe)
    except (ImportError, AttributeError):
        # an old torch loads everything
        pass


def settings(name: str, flags: list[str]) -> argparse.Namespace:
    """What the attack's own class makes of flags, with the defaults of its YAML files."""
    module = importlib.import_module(f"attack.{name}")
    own = [
        kind
        for kind in vars(module).values()
        if getattr(kind, "__module__", "") == module.__name__ and hasattr(kind, "set_bd_args")
    ]
    attack = own[0]()
    parser = attack.set_bd_args(attack.set_args(argparse.ArgumentParser()))
    args = parser.parse_args(flags)
    attack.add_bd_yaml_to_args(args)
    attack.add_yaml_to_args(args)
    processed: argparse.Namespace = attack.process_args(args)
    return processed


def answered(images: np.ndarray, classes: int) -> None:
    """Have what the scripts ask of a data set say how many classes and which size ours has."""
    import utils.aggregate_block.dataset_and_transform_generate as source  # type: ignore[import-not-found]

    height, width = images.shape[1:3]
    source.get_num_classes = lambda *_: classes
    source.get_input_shape = lambda *_: (height, width, 3)


def served(parts: dict[str, np.ndarray]) -> None:
    """Have torchvision's CIFAR10, which the scripts read, hold our images, whatever they are of."""
    from torchvision.datasets import CIFAR10

    def start(
        self: Any,
        root: Any,
        train: bool = True,
        transform: Any = None,
        target_transform: Any = None,
        download: bool = False,
    ) -> None:
        which = "train" if train else "test"
        self.root = str(root)
        self.train = train
        self.transform = transform
        self.target_transform = target_transform
        self.transforms = None
        self.data = parts[f"{which}_images"]
        self.targets = parts[f"{which}_labels"].tolist()
        self.classes = [str(label) for label in range(int(parts["classes"]))]
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}

    CIFAR10.__init__ = start


def transform(name: str, folder: Path, flags: list[str]) -> None:
    """Change the images of ``folder/before.npz`` into ``folder/after.npz``."""
    from PIL import Image

    made: dict[str, Any] = {}
    with np.load(folder / "before.npz", allow_pickle=False) as before:
        answered(before["train_images"], int(before["classes"]))
        from utils.aggregate_block.bd_attack_generate import (  # type: ignore[import-not-found]
            bd_attack_img_trans_generate,
        )

        own = bd_attack_img_trans_generate(settings(name, flags))
        changes = dict(zip(("train", "test"), own, strict=True))
        for part, change in changes.items():
            rows = zip(
                before[f"{part}_images"],
                before[f"{part}_labels"].tolist(),
                before[f"{part}_places"].tolist(),
                strict=True,
            )
            made[f"{part}_images"] = np.stack(
                [
                    as_stored(change(Image.fromarray(image), target=y, image_serial_id=i))
                    for image, y, i in rows
                ]
            )
    np.savez(folder / "after.part.npz", **made)
    (folder / "after.part.npz").replace(folder / "after.npz")


def as_stored(image: object) -> np.ndarray:
    """The picture that BackdoorBench would store: arrays lose their fractions, tensors count from 0
    to 1.
    """
    if hasattr(image, "detach"):
        image = np.asarray(image).transpose(1, 2, 0) * 255
    return np.asarray(image).astype(np.uint8)


def script(name: str, folder: Path, flags: list[str]) -> None:
    """Run ``attack/NAME.py`` on the images of ``folder/clean.npz``."""
    with np.load(folder / "clean.npz", allow_pickle=False) as clean:
        parts = dict(clean)
    served(parts)
    answered(parts["train_images"], int(parts["classes"]))
    file = Path("attack") / f"{name}.py"
    sys.argv = [str(file), *flags]
    runpy.run_path(str(file), run_name="__main__")


def main(words: list[str]) -> None:
    """What stands after ``launch.py``."""
    if not words:
        sys.exit("usage: python -m backdoorbench_ext.toolbox.launch SCRIPT.py FLAGS...")
    old_names()
    sys.path.insert(0, str(Path.cwd()))
    if words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            sys.exit(f"{words[0]}: no such file")
        # where Python itself would look first
        sys.path.insert(1, str(Path(words[0]).resolve().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        return
    what, called, place, *flags = words
    (transform if what == "transform" else script)(called, Path(place), flags)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Runs in BackdoorBench's Python, in its root folder: ``launch.py transform NAME FOLDER JSON`` or
``launch.py script NAME FLAGS...``.

Only the standard library and what BackdoorBench itself needs. Names that newer versions of NumPy
and setuptools have dropped, and that its code still uses, are put back for this process.
"""

import argparse
import importlib
import importlib.resources
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


def resource_stream(package: str, name: str) -> Any:
    """A file of a package, opened for reading: what ``pkg_resources`` had under this name."""
    return importlib.resources.files(package).joinpath(name).open("rb")


def old_names() -> None:
    """np.float, np.infty, np.lib.pad and pkg_resources.resource_stream; and its own records, which
    torch 2.6 and later would not load.
    """
    for module, name, value in (
        (np, "float", float),
        (np, "infty", np.inf),
        (np.lib, "pad", np.pad),
    ):
        if not hasattr(module, name):
            setattr(module, name, value)
    try:
        importlib.import_module("pkg_resources")
    except ImportError:
        stub: Any = types.ModuleType("pkg_resources")
        stub.resource_stream = resource_stream
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


def settings(name: str, given: dict[str, Any]) -> argparse.Namespace:
    """The attack's YAML file, and above it what was given."""
    import yaml

    file = Path(given.get("bd_yaml_path", f"config/attack/{name}/default.yaml"))
    return argparse.Namespace(
        **{**(yaml.safe_load(file.read_text("utf-8")) if file.exists() else {}), **given}
    )


def transform(name: str, folder: Path, given: dict[str, Any]) -> None:
    """Change the images of ``folder/before.npz`` into ``folder/after.npz``."""
    from PIL import Image
    from utils.aggregate_block.bd_attack_generate import bd_attack_img_trans_generate  # type: ignore[import-not-found]

    changes = dict(
        zip(("train", "test"), bd_attack_img_trans_generate(settings(name, given)), strict=True)
    )
    made: dict[str, Any] = {}
    with np.load(folder / "before.npz", allow_pickle=False) as before:
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


if __name__ == "__main__":
    old_names()
    sys.path.insert(0, str(Path.cwd()))
    if sys.argv[1] == "transform":
        transform(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        script = Path("attack") / f"{sys.argv[2]}.py"
        sys.argv = [str(script), *sys.argv[3:]]
        runpy.run_path(str(script), run_name="__main__")

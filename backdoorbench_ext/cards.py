"""Networks for others: the weights that ``bbx run --save-models`` kept, or ONNX, each in a folder
with its record and a model card that says what it is and how far it is backdoored.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from . import datasets, models, records, registry, report
from .errors import InputError, reason
from .files import whole_folder, write_text, write_whole
from .models import Net
from .naming import title
from .reading import content
from .records import Record
from .suite import Cell, Suite, file_name

FORMATS = ("safetensors", "onnx")
LOADED = {
    "safetensors": 'import backdoorbench_ext as bbx\n\nnet = bbx.load_model("model.safetensors")\n'
    "logits = net(images)",
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
    '(logits,) = session.run(None, {"images": images})',
}
PAIR = "its defense alone can build this network"


def export(
    grid: Suite,
    folder: Path,
    to: Path,
    form: str,
    only: str = "",
    side: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Path], list[str]]:
    """Write a folder below ``to`` for each network that lies beside a record of a suite.

    Args:
        form: "safetensors" or "onnx".
        only: words that must be in a cell's path.
        side: of the images that a network in ONNX takes, in pixels; their number is free.

    Returns:
        The folders, and a line on each network that could not be written.

    Raises:
        InputError: no networks there, or packages that are missing.
    """
    cells = [c for c in grid.cells(only) if _network(folder, c).exists()]
    if not cells:
        raise InputError(f"{folder}: no networks; bbx run --save-models keeps them")
    written = []
    left = []
    for done, cell in enumerate(cells):
        if progress:
            progress(done, len(cells))
        record = records.read(folder / cell.path)
        data = content(_network(folder, cell))
        found = models.unpack(data)
        if form == "onnx":
            if found is None:
                left.append(f"{cell}: {PAIR}")
                continue
            data = onnx(found[0], side)
        name = file_name(f"{cell.dataset}-{cell.attack}-{cell.defense}-{cell.path.stem}")
        with whole_folder(to / name) as part:
            write_whole(part / f"model.{form}", data)
            write_text(part / "record.json", json.dumps(record, indent=1) + "\n")
            write_text(part / "README.md", card(record, form, alone=found is not None))
        written.append(to / name)
    return written, left


def _network(folder: Path, cell: Cell) -> Path:
    return (folder / cell.path).with_suffix(".safetensors")


def onnx(net: Net, side: int) -> bytes:
    """A network as ONNX: float (n, 3, side, side) in [0, 1] to logits (n, classes), n free.

    Raises:
        InputError: the packages are missing, or it has an operation that ONNX lacks.
    """
    # PyTorch tells of what it may not know, at length
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (torch.rand(2, 3, side, side),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("n")},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None
            with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
                program.save(file.name)
                return file.read()
    except ImportError as error:
        raise InputError(
            "--format onnx needs its packages: pip install 'backdoorbench_ext[onnx]'"
        ) from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(f"no ONNX of this network ({reason(error)})") from error


def card(record: Record, form: str, alone: bool = True) -> str:
    """The model card of a record's network, as Markdown; ``alone``: it can be built without its
    defense.
    """
    cell = record["cell"]
    spec = record["spec"]
    name = registry.parse(cell["dataset"])[0]
    classes = datasets.NAMES.get(name)
    what = "clean images" if cell["attack"] == "none" else "poisoned images"
    lines = [
        f"# {title(cell['defense'])} against {cell['attack']} on {cell['dataset']}",
        "",
        f"**Made for research on backdoors. Do not deploy it**: it was trained on {what}. "
        "ASR below says how often the trigger still works.",
        "",
        f"Input: float32 (n, 3, h, w) in [0, 1], RGB, not normalised. Output: logits (n, classes). "
        f"Target label: {spec['protocol'].get('target', 'unknown')}. Poisoning rate: "
        f"{100 * spec['rate']:g} %. Seed: {spec['seed']}.",
        "",
    ]
    if classes:
        lines += [f"Classes, from 0: {', '.join(classes)}.", ""]
    loaded = LOADED[form] if alone else "# " + PAIR
    lines += ["```python", *loaded.splitlines(), "```", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in report.facts(record).items()]
    lines += [
        "",
        "`record.json` holds the hits image by image, and all that decides the result:",
        "",
        "```json",
        json.dumps(spec, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)

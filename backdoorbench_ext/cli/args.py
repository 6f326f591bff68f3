"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import metrics, registry
from ..errors import InputError
from ..protocols import PROTOCOLS

NAME = "a benchmark's name, a .py file that defines SUITE, or a folder of results"
PROTOCOL = ", ".join(PROTOCOLS)
COUNTED = ",".join(metrics.COUNTED)
NO_FILES: list[Path] = []
NO_TEXTS: list[str] = []


# Any: Typer takes a generic alias for a class on Python 3.10
def _register(files: Any) -> Any:
    for file in files:
        registry.add_file(file)
    return files


def _count(text: str) -> str:
    if text not in ("", "auto") and not (text.isdecimal() and int(text)):
        raise InputError(f"--jobs must be a number of at least 1, or auto, not {text!r}")
    return text


def _metrics(text: str) -> str:
    for key in text.split(","):
        metrics.get(key.strip())
    return text


Name = Annotated[str, typer.Argument(help=NAME)]
Out = Annotated[Path, typer.Option("--out", help="folder of the results, one folder a suite")]
Only = Annotated[
    str,
    typer.Option(
        "--only",
        help="only the cells whose path contains this text, or each of several words; | stands "
        "for or: 'blend /fp/ | blend /nad/'",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for scripts")]
Plugins = Annotated[
    list[Path],
    typer.Option(
        "--plugin",
        callback=_register,
        # before the options whose values may be names that a plugin brings
        is_eager=True,
        help="a .py file with an attack, a defense, an executor, a SUITE, a METRIC or a network; "
        "may be given several times",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")]
Data = Annotated[Path | None, typer.Option(help="folder of the data sets' files")]
Download = Annotated[
    bool, typer.Option("--download", help="let torchvision download what is missing into --data")
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", help="shorten or lengthen every training; makes cells of their own"),
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="run on this share of the training set for this share of the epochs, of the methods' "
        "own too; makes cells of their own"
    ),
]
Jobs = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        callback=_count,
        help="trainings at a time, each in a process; by default one a core on a CPU, one on a "
        "GPU; auto tries out what is best",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="another network, by timm's name (with a tag of timm's: pretrained); makes cells of "
        "their own",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="a state dict that the network of --model starts from, .safetensors or torch.save's",
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        "--metrics",
        callback=_metrics,
        help="the numbers to show, with commas between them: bbx list metrics",
    ),
]
Protocols = Annotated[str, typer.Option("--protocol", help=f"protocol: {PROTOCOL}")]
Seeds = Annotated[str, typer.Option(help="seeds, e.g. 0,1,2")]

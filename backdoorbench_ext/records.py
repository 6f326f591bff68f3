"""One JSON record a finished cell: written whole when the run has ended, so a file that exists is a
finished run.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .errors import InputError
from .files import write_whole

FORMAT = 1
METRICS = ("ca", "asr", "arr")
Record = dict[str, Any]


def write(path: Path, record: Record) -> None:
    """Write a record, its stages in the order in which they were trained, and take away the trace
    of an earlier failure.
    """
    write_whole(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    path.with_suffix(".failed").unlink(missing_ok=True)


def read(path: Path) -> Record:
    """Raises:
    InputError: not a record of this format.
    """
    try:
        record = json.loads(path.read_text())
        if record["format"] != FORMAT:
            raise InputError(
                f"{path}: record format {record['format']!r}, this version reads {FORMAT}"
            )
        for name in METRICS:
            hits, n = record["metrics"][name]
            if not 0 <= hits <= n:
                raise ValueError(f"{name} {hits} of {n}")
        (
            record["spec"]["dataset"],
            record["spec"]["attack"]["name"],
            record["spec"]["defense"]["name"],
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: not a record ({type(error).__name__}: {error})") from error
    return dict(record)


def read_all(folder: Path) -> list[Record]:
    """Every record below a folder, in the order of the paths."""
    return [read(path) for path in sorted(folder.rglob("rate*-seed*.json"))]


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share, in [0, 1] (Wilson 1927,
    https://doi.org/10.1080/01621459.1927.10502953).
    """
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    zz = z * z
    middle = p + zz / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (middle - half) / (1 + zz / n)), min(1.0, (middle + half) / (1 + zz / n))


def surroundings(device: torch.device) -> dict[str, Any]:
    """The machine and the software: what a number may depend on beside its spec."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("torchvision", "timm", "numpy", "backdoorbench-ext"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit(),
    }


def precision(record: Record) -> str:
    """In what the networks of a record computed: "bf16" or "float32", "" where it does not say."""
    return {True: "bf16", False: "float32"}.get(record["surroundings"].get("bf16"), "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"CPU, {model}, {os.cpu_count()} cores"


def commit() -> str:
    """The git commit of the checkout this code lies in, with "+" when files differ from it; ""
    outside a checkout.
    """
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:
            # installed into somebody else's checkout
            return ""
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""

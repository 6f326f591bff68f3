"""One JSON record a finished cell: written whole when the run has ended, so a file that exists is a
finished run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import write_whole
from .metrics import unpack

# 1 had counts alone; 2 holds the hits image by image beside them
FORMAT = 2
Record = dict[str, Any]


def write(path: Path, record: Record) -> None:
    """Write a record, its stages in the order in which they were trained, and take away the trace
    of an earlier failure.
    """
    write_whole(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    path.with_suffix(".failed").unlink(missing_ok=True)


def read(path: Path) -> Record:
    """A record of any format that there has been.

    Raises:
        InputError: not a record.
    """
    try:
        record = json.loads(path.read_bytes())
        if record["format"] not in range(1, FORMAT + 1):
            raise InputError(
                f"{path}: record format {record['format']!r}, this version reads up to {FORMAT}"
            )
        _check(record)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: not a record ({type(error).__name__}: {error})") from error
    return dict(record)


def _check(record: Record) -> None:
    """That the parts are there which a table needs; what is counted may be missing, not wrong."""
    for name, (hits, n) in record["metrics"].items():
        if not 0 <= hits <= n:
            raise ValueError(f"{name} {hits} of {n}")
    for name in ("dataset", "attack", "defense"):
        if not isinstance(record["cell"][name], str):
            raise TypeError(f"the cell's {name} is no text")
    for name in ("rate", "seed"):
        if not isinstance(record["spec"][name], (int, float)):
            raise TypeError(f"{name} is no number")


def hits(record: Record, metric: str) -> np.ndarray | None:
    """Which images counted: bool (n,); None where the record, of format 1, holds counts alone.

    Raises:
        ValueError: the bits are not those of the count.
    """
    kept = record.get("hits", {}).get(metric)
    if kept is None:
        return None
    count, n = record["metrics"][metric]
    bits = unpack(kept, n)
    if bits.sum() != count:
        raise ValueError(f"{metric}: {bits.sum()} bits are set, {count} are counted")
    return bits


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


def precision(record: Record) -> str:
    """In what the networks of a record computed: "bf16" or "float32", "" where it does not say."""
    return {True: "bf16", False: "float32"}.get(record["surroundings"].get("bf16"), "")

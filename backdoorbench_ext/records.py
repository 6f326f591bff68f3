"""One JSON record a finished cell: written whole when the run has ended, so a file that exists is a
finished run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from typing_extensions import NotRequired, TypedDict

from . import registry
from .errors import InputError, one_line, reason
from .files import write_text
from .metrics import unpack
from .reading import Count, Number, Text, content, parsed
from .suite import Cell, Suite, digest, matching

# 1 had counts alone; 2 holds the hits image by image beside them
FORMAT = 2
Record = dict[str, Any]
# a record's file, with the digest of its spec
NAME = re.compile(r"rate.*-seed.*-([0-9a-f]{10})\.json")


class Spec(TypedDict):
    """Of what decides a result, what tables need."""

    rate: Number
    seed: int
    protocol: dict[str, Any]


class Names(TypedDict):
    """A cell, by the names that its grid has."""

    dataset: Text
    attack: Text
    defense: Text


class Given(TypedDict):
    """How many images there were."""

    train_images: Count
    clean_images: Count


class Time(TypedDict):
    """Seconds."""

    training: Number
    stages: NotRequired[dict[Text, Number]]


class Surroundings(TypedDict):
    """What a number comes from."""

    device: Text
    commit: Text | None
    versions: dict[Text, Text]
    bf16: NotRequired[bool]
    data: NotRequired[Text]
    poison: NotRequired[Text]


# [hits, images] of each metric
Counts = dict[Text, tuple[Count, Count]]


class Shape(TypedDict):
    """What must be in a record, and of which types."""

    format: int
    spec: Spec
    cell: Names
    metrics: Counts
    hits: NotRequired[dict[Text, Text]]
    probes: dict[Text, Counts]
    suspects: NotRequired[dict[Text, dict[Text, Number | None]]]
    curves: dict[Text, list[Number]]
    # what the attack told while it learned its trigger
    trigger: NotRequired[dict[Text, list[Number]]]
    given: Given
    # how its options were chosen, by ``bbx tune``
    tuned: NotRequired[dict[Text, Any]]
    time: Time
    surroundings: Surroundings


def write(path: Path, record: Record) -> None:
    """Write a record, its stages in the order in which they were trained, and take away the trace
    of an earlier failure.
    """
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    path.with_suffix(".failed").unlink(missing_ok=True)


def read(path: Path) -> Record:
    """A record of any format that there has been.

    Raises:
        InputError: not a record, or another cell's: its name ends in the digest of its spec.
    """
    record: Record = parsed(path, dict[str, Any])
    form = record.get("format")
    if type(form) is int and form not in range(1, FORMAT + 1):
        raise InputError(f"{path}: record format {form}, this version reads up to {FORMAT}")
    try:
        msgspec.convert(record, Shape)
        counts = [record["metrics"], *record["probes"].values()]
        for name, (found, n) in (pair for own in counts for pair in own.items()):
            if found > n:
                raise ValueError(f"{name} {found} of {n}")
        named = NAME.fullmatch(path.name)
        if named and named[1] != digest(record["spec"]):
            raise ValueError("its spec is another cell's, or was changed")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a record ({reason(error)})") from error
    return record


def why_failed(path: Path) -> str | None:
    """The last line of the reason why the cell of a record's path failed; None if there is none,
    any more perhaps.
    """
    file = path.with_suffix(".failed")
    if not file.exists():
        return None
    try:
        lines = content(file).decode("utf-8", "replace").split("\n")
    except InputError as error:
        return str(error) if file.exists() else None
    return next((one_line(line) for line in reversed(lines) if line.strip()), "no reason is given")


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


def of_grid(grid: Suite, folder: Path, only: str = "") -> list[Record]:
    """The records of a grid's cells, of those whose path contains what ``only`` says (as
    ``suite.matching``). Records alone are enough: where a method has become another version, or its
    plugin is not at hand, a cell has the latest that was made of it.

    Raises:
        InputError: words of ``only`` that no record has.
    """
    try:
        cells = grid.cells()
    except InputError:
        cells = grid.unresolved()
    there: dict[Path, Record] = {}
    for cell in cells:
        there |= _of_cell(cell, folder)
    if not only or not there:
        return list(there.values())
    hint = f"`bbx status {grid.name}` shows them"
    wanted = matching(there, only, f"record of {grid.name}", hint)
    return [record for path, record in there.items() if path in wanted]


def _of_cell(cell: Cell, folder: Path) -> dict[Path, Record]:
    """A cell's record by its path in the folder, if there is one."""
    path = None
    with suppress(InputError):
        path = cell.path
    if path and (folder / path).exists():
        return {path: read(folder / path)}
    rules = json.loads(json.dumps(cell.rules.spec()))
    files = sorted((folder / cell.place).glob(f"{cell.stem}-*.json"))
    made = {file.relative_to(folder): read(file) for file in files}
    same = {
        path: record
        for path, record in made.items()
        if record["cell"] == cell.names and record["spec"]["protocol"] == rules
    }
    latest = max(same, key=lambda path: _versions(same[path]), default=None)
    return {latest: same[latest]} if latest else {}


def outdated(there: Sequence[Record], kind: str) -> list[str]:
    """The attacks ("attack") or defenses ("defense") whose version is a later one now."""
    return list(dict.fromkeys(record["cell"][kind] for record in there if _old(record, kind)))


def current(there: Sequence[Record]) -> list[Record]:
    """The records whose methods have not changed since: others are not to be judged by them."""
    return [r for r in there if not _old(r, "attack") and not _old(r, "defense")]


def _old(record: Record, kind: str) -> bool:
    """Whether a record's method is another version now; False of one that is not at hand."""
    try:
        now: int = registry.get_class(f"{kind}s", registry.parse(record["cell"][kind])[0]).version
    except InputError:
        return False
    return bool(record["spec"][kind].get("version", 1) < now)


def _versions(record: Record) -> tuple[int, ...]:
    return tuple(record["spec"][kind].get("version", 1) for kind in ("attack", "defense"))


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

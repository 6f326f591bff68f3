"""Folders of results of one grid, run in several places, as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import records, suite
from .errors import InputError
from .files import write_whole
from .suite import Suite

# what of the surroundings must be equal, or numbers may be of different images
IMAGES = ("data",)


def share(cells: Sequence[suite.Cell], text: str) -> list[suite.Cell]:
    """The cells of the share ``i/n``: trainings in the order of their keys, dealt out in turn.

    Raises:
        InputError: not of that form.
    """
    first, _, second = text.partition("/")
    try:
        place, parts = int(first), int(second)
        if not 1 <= place <= parts:
            raise ValueError
    except ValueError:
        raise InputError(f"--shard must be i/n, with i from 1 to n, not {text!r}") from None
    keys = sorted({cell.key for cell in cells})
    mine = set(keys[place - 1 :: parts])
    return [cell for cell in cells if cell.key in mine]


def merge(folders: Sequence[Path], to: Path) -> tuple[Suite, int]:
    """Copy the records of grids of one protocol, and what lies beside them, into one folder, which
    may hold some already; the grid, joined on all axes, and how many records are new.

    Everything is checked before anything is copied.

    Raises:
        InputError: a folder is none of results, grids differ in more than their axes, or two
            records of one cell differ in their numbers; each is named.
    """
    grids = [suite.load(str(folder)) for folder in folders]
    if (to / suite.FILE).exists():
        grids.append(suite.load(str(to)))
    first = grids[0]
    for grid, folder in zip(grids, [*folders, to], strict=False):
        if (grid.protocol, grid.own_rates) != (first.protocol, first.own_rates):
            raise InputError(f"{folder} has another protocol than {folders[0]}: they stay apart")
    new: dict[Path, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("rate*.json")):
            place = file.relative_to(folder)
            there = new.get(place, to / place)
            if there.exists():
                _same(file, there)
            else:
                new[place] = file
    for place, file in new.items():
        _copy(file, to / place)
    for grid in grids:
        first = grid.save(to, suite.AXES)
    return first, len(new)


def _same(file: Path, other: Path) -> None:
    """Raises: InputError: two records of a cell differ in more than when and where they ran."""
    found, there = (_compared(records.read(path)) for path in (file, other))
    differ = [key for key in found if found[key] != there.get(key)]
    if differ:
        raise InputError(f"{file} and {other} differ in {', '.join(differ)}: delete one of them")


def _compared(record: records.Record) -> dict[str, Any]:
    around = record["surroundings"]
    rest = {key: value for key, value in record.items() if key in ("spec", "metrics")}
    return rest | {key: around.get(key) for key in IMAGES}


def _copy(file: Path, to: Path) -> None:
    """A record, after what lies beside it: a record says that the cell is done."""
    picture = file.parent.with_name("examples.png")
    beside = [f for f in file.parent.glob(f"{file.stem}.*") if f.suffix not in (".json", ".failed")]
    if picture.exists() and not (to.parent.with_name("examples.png")).exists():
        write_whole(to.parent.with_name("examples.png"), picture.read_bytes())
    for own in beside:
        write_whole(to.with_suffix(own.suffix), own.read_bytes())
    write_whole(to, file.read_bytes())

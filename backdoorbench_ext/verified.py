"""What ``bbx verify`` found out about records that came from elsewhere, kept beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from .files import locked, write_text
from .reading import parsed
from .records import Record
from .suite import digest

FILE = "verified.json"
# the states of a record, from the weakest
STATES = ("self-reported", "recomputed", "re-run")
# points that a metric may move when a cell is run again elsewhere; stated in every outcome
TOLERANCE = 5.0
# what a page says of records that were made here, or came without a check
UNCHECKED = "not checked"
ORDER = (UNCHECKED, *STATES)
MEANING = {
    "self-reported": "counts without bits, as sent",
    "recomputed": "its metrics were counted again from its bits, its spec is the benchmark's",
    "re-run": f"trained again here, within {TOLERANCE:g} points",
    UNCHECKED: "made here, or not given to bbx verify",
}


def keep(folder: Path, found: Sequence[tuple[Record, str]]) -> None:
    """Add records with their states to what is kept in a suite's folder; a record that was looked
    at more closely before keeps that state.
    """
    with locked(folder / ".state" / FILE):
        kept = _kept(folder)
        before = states(folder, [record for record, _ in found])
        for (record, state), old in zip(found, before, strict=True):
            kept[_key(record)] = _content(record), max(state, old, key=ORDER.index)
        write_text(folder / FILE, json.dumps(kept, indent=1, sort_keys=True) + "\n")


def states(folder: Path, records: Sequence[Record]) -> list[str]:
    """The state of each record; ``UNCHECKED`` of one that is not, or was changed since.

    Raises:
        InputError: what is kept cannot be read.
    """
    kept = _kept(folder)
    found = []
    for record in records:
        content, state = kept.get(_key(record), ("", UNCHECKED))
        known = content == _content(record) and state in STATES
        found.append(state if known else UNCHECKED)
    return found


def _kept(folder: Path) -> dict[str, tuple[str, str]]:
    """The digest of a record's content, and its state, by the digest of its spec."""
    file = folder / FILE
    found: dict[str, tuple[str, str]] = {}
    if file.exists():
        found = parsed(file, dict[str, tuple[str, str]])
    return found


def _key(record: Record) -> str:
    return digest(record["spec"])


def _content(record: Record) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

"""The checkout of BackdoorBench that ``BACKDOORBENCH_HOME`` names."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError

# attacks that only change images, by the names of BackdoorBench's dispatch
DISPATCH = {name: name for name in ("badnet", "blended", "sig", "ctrl", "ftrojann")} | {
    "ssba": "SSBA",
    "lc": "label_consistent",
    "lf": "lowFrequency",
}


def home() -> Path:
    """The folder of the checkout.

    Raises:
        InputError: ``BACKDOORBENCH_HOME`` is not set, or names no checkout.
    """
    named = os.environ.get("BACKDOORBENCH_HOME")
    if not named:
        raise InputError(
            "backdoorbench:NAME needs a checkout of BackdoorBench: set BACKDOORBENCH_HOME to its "
            "folder"
        )
    folder = Path(named).expanduser()
    if not (folder / "utils" / "aggregate_block").is_dir():
        raise InputError(f"BACKDOORBENCH_HOME={folder} is no checkout of BackdoorBench")
    return folder.resolve()


def attacks() -> dict[str, str]:
    """The attacks of the checkout and how each is run; none without a checkout."""
    if not os.environ.get("BACKDOORBENCH_HOME"):
        return {}
    files = sorted((home() / "attack").glob("*.py"))
    how = {
        True: "BackdoorBench's images, our training",
        False: "BackdoorBench's own script; its record is read back",
    }
    return {
        f"backdoorbench:{file.stem}": how[file.stem in DISPATCH]
        for file in files
        if file.stem != "prototype"
    }

"""Backdoor attacks and defenses for image classifiers, compared under equal conditions.

``import backdoorbench_ext as bbx`` offers the steps of a cell and whole grids (``bbx.poison``,
``bbx.train``, ``bbx.evaluate``, ``bbx.run``, ``bbx.results``); they are imported when they are
first used, since PyTorch takes seconds. The command line is ``bbx``.
"""

import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

__version__ = "0.1.0"

# OpenMP threads that spin while they wait make two jobs on shared cores up to ten times slower,
# such that never spin make one job alone a quarter slower; 3,000 turns are some microseconds,
# enough between two operations of a network (docs/speed.md). Read once, when torch is first
# imported: it has to be set here.
_os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if _TYPE_CHECKING:
    from .python import (
        attack,
        defense,
        evaluate,
        load_data,
        load_model,
        plugin,
        poison,
        results,
        run,
        train,
    )

__all__ = [
    "attack",
    "defense",
    "evaluate",
    "load_data",
    "load_model",
    "plugin",
    "poison",
    "results",
    "run",
    "train",
]


def __getattr__(name: str) -> _Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import python

    return getattr(python, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

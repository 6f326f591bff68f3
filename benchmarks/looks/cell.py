"""The cell that a look is taken at, from a command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from backdoorbench_ext import suite
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite


def asked(doc: str | None) -> argparse.ArgumentParser:
    """The words that every look understands."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("suite", help="a benchmark's name, or a .py file that defines SUITE")
    parser.add_argument("only", help="words in the path of a cell; the first one is taken")
    parser.add_argument("--scale", type=float, help="as of bbx run")
    parser.add_argument("--epochs", type=int, help="as of bbx run")
    parser.add_argument("--data", type=Path, help="folder of the data sets' files")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where victims are kept")
    parser.add_argument("--device", default="auto")
    return parser


def grid_of(given: argparse.Namespace) -> Suite:
    """The cell's grid, as ``bbx run`` has it."""
    return suite.load(given.suite).changed(scale=given.scale, epochs=given.epochs)


def lab_of(given: argparse.Namespace) -> Lab:
    """The cell's images, attack and engine.

    Raises:
        InputError: no such benchmark or cell, or data that cannot be read.
    """
    options = Options(out=given.out, data=given.data, device=given.device)
    lab = Lab(grid_of(given).cells(given.only)[0], options)
    lab.check()
    return lab

"""What rebuilding the code must leave as it was: the names of records, and the bits."""

import json
import subprocess
import sys
from pathlib import Path

import bits
import pytest

from backdoorbench_ext import suite
from backdoorbench_ext.suite import Cell, digest

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.skipif(not RESULTS.is_dir(), reason="not a checkout: no committed records")
def test_every_committed_record_keeps_its_name():
    """Today's code would write the same spec, and so look for the record where it lies, unless a
    method's version was raised since.
    """
    seen = 0
    for file in sorted(RESULTS.glob("*/suite.json")):
        grid = suite.load(str(file.parent))
        for path in sorted(file.parent.rglob("rate*-seed*-*.json")):
            record = json.loads(path.read_text())
            spec = record["spec"]
            named = record["cell"]
            cell = Cell(**named, rate=spec["rate"], seed=spec["seed"], protocol=grid.protocol)
            assert path.stem.endswith(digest(spec))
            # what an earlier version of a method gave stays, and counts no more
            before = any(
                spec[kind]["version"] < cell.spec[kind]["version"] for kind in ("attack", "defense")
            )
            assert before or file.parent / cell.path == path
            seen += not before
    assert seen > 130


@pytest.mark.parametrize(
    "kinds",
    [("attacks", "defenses"), pytest.param(("demo",), marks=pytest.mark.slow)],
    ids=["methods", "demo"],
)
def test_bits(kinds):
    """One thread, float32, kernels that do not depend on the CPU: the same weights as ever."""
    places = json.loads(bits.FILE.read_text())
    kept = places.get(bits.place())
    if kept is None:
        pytest.skip(
            f"no digests of {bits.place()}: python tests/bits.py {' '.join(bits.KINDS)} --write"
        )
    words = [sys.executable, bits.__file__, *kinds]
    found = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    # what was written on a CPU of another maker cannot be had here; what was written on none fails
    elsewhere = set().union(*places.values()) - set(kept)
    told = {name: digest for name, digest in found.items() if name not in elsewhere}
    assert told and {name: kept.get(name) for name in told} == told
    if len(told) < len(found):
        left = ", ".join(sorted(elsewhere & set(found)))
        pytest.skip(f"all others are as ever; no digests of {bits.place()}: {left}")

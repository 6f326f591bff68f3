"""A whole cell, split: ``python -m benchmarks.speed.cell [--defense cbd] [--model wrn16_1]
[--epochs N]``.

Poisoning, training, evaluation, and all the rest.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from backdoorbench_ext import runner
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.options import Options
from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .timing import arguments, keep


def measure(suite: Suite, options: Options) -> dict[str, float]:
    """Seconds of one cell by part; ``rest`` is reading data, building networks, pictures and
    writing.
    """
    start = time.perf_counter()
    (outcome,) = runner.run(runner.plan(suite, suite.cells(), options), jobs=1)
    whole = time.perf_counter() - start
    if outcome.record is None:
        raise RuntimeError(outcome.error)
    parts = {
        part: float(outcome.record["time"][part])
        for part in ("poisoning", "training", "evaluation")
    }
    return parts | {"rest": whole - sum(parts.values())}


@in_one_line()
def main() -> None:
    given = arguments(__doc__, defense="none", model="wrn16_1", epochs=1, compile="")
    suite = Suite("cell", CBD, (given.dataset,), ("badnets",), (given.defense,)).changed(
        epochs=given.epochs, model=given.model
    )
    with tempfile.TemporaryDirectory() as folder:
        parts = measure(
            suite,
            Options(
                out=Path(folder), data=given.data, device=str(given.device), compile=given.compile
            ),
        )
    print(
        f"\none cell: {given.defense}, {given.model}, {given.epochs} epochs, {given.dataset}, "
        f"{torch.get_num_threads()} threads"
    )
    for part, seconds in parts.items():
        print(f"  {part:12} {seconds:8.2f} s   {100 * seconds / sum(parts.values()):5.1f} %")
    keep(
        "cell",
        given,
        {},
        model=given.model,
        epochs=given.epochs,
        defense=given.defense,
        compile=given.compile,
        seconds=parts,
    )


if __name__ == "__main__":
    main()

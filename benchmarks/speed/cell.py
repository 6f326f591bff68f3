"""A whole cell, split: ``python -m benchmarks.speed.cell [--defense cbd] [--model wrn16_1] [--epochs N]``: poisoning, training, evaluation, and all the rest.

And cells an hour against ``--jobs``: ``--jobs 1,2``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from backdoorbench_ext import runner
from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .timing import Speed, arguments, keep


def measure(suite: Suite, options: runner.Options) -> dict[str, float]:
    """Seconds of one cell by part; ``rest`` is reading data, building networks, pictures and writing."""
    start = time.perf_counter()
    (outcome,) = runner.run(suite, suite.cells(), options, jobs=1)
    whole = time.perf_counter() - start
    if outcome.record is None:
        raise RuntimeError(outcome.error)
    parts = {part: float(outcome.record["time"][part]) for part in ("poisoning", "training", "evaluation")}
    return parts | {"rest": whole - sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--defense", default="none")
    parser.add_argument("--model", default="wrn16_1")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--jobs", default="1,2")
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    given = arguments(__doc__, rounds=1)
    suite = Suite("cell", CBD, (given.dataset,), ("badnets",), (own.defense,)).changed(epochs=own.epochs, model=own.model)
    with tempfile.TemporaryDirectory() as folder:
        options = runner.Options(out=Path(folder), data=given.data, device=str(given.device))
        parts = measure(suite, options)
        print(f"\none cell: {own.defense}, {own.model}, {own.epochs} epochs, {given.dataset}, {torch.get_num_threads()} thread")
        for part, seconds in parts.items():
            print(f"  {part:12} {seconds:8.2f} s   {100 * seconds / sum(parts.values()):5.1f} %")
        speeds = {}
        for jobs in map(int, own.jobs.split(",")):
            grid = suite.changed(seeds=tuple(range(100 * jobs, 100 * jobs + 2 * jobs)))
            start = time.perf_counter()
            runner.run(grid, grid.cells(), options, jobs=jobs)
            rate = 2 * jobs * 3600 / (time.perf_counter() - start)
            speeds[f"--jobs {jobs}"] = Speed(rate / 3600, rate / 3600, rate / 3600)
            print(f"  --jobs {jobs}: {rate:,.0f} cells an hour, starting the processes included")
    keep("cell", given.json, given.device, speeds, dataset=given.dataset, model=own.model, epochs=own.epochs, defense=own.defense, seconds=parts)


if __name__ == "__main__":
    main()

"""Trainings beside each other: ``python -m benchmarks.speed.grid [--jobs 1,2,4] [--model wrn16_1]
[--cells EPOCHS]``.

Images a second together and, with ``--cells``, cells an hour. ``--jobs auto`` of ``bbx run``
chooses by the first figure; the second counts the starts of the processes and all that is not
training.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from backdoorbench_ext import beside, runner
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.options import Options
from backdoorbench_ext.protocols import CBD, Protocol
from backdoorbench_ext.suite import Suite

from .timing import Speed, arguments, keep, show


def together(
    rules: Protocol,
    jobs: tuple[int, ...],
    device: str,
    rounds: int,
    seconds: float = 5.0,
    side: int = 32,
) -> dict[str, Speed]:
    """Images a second of so many processes together, by their number, in rounds that alternate."""
    by_count: dict[int, list[float]] = {count: [] for count in jobs}
    for _ in range(rounds):
        for count in jobs:
            by_count[count].append(beside.speed(count, rules, (3, side, side), 10, device, seconds))
    return {f"{count} at a time": Speed.of(speeds) for count, speeds in by_count.items()}


def cells_an_hour(suite: Suite, options: Options, jobs: int) -> float:
    """Two cells a process, the poisoned sets all different."""
    grid = suite.changed(seeds=tuple(range(2 * jobs)))
    start = time.perf_counter()
    outcomes = runner.run(runner.plan(grid, grid.cells(), options), jobs=jobs)
    if failed := [outcome.error for outcome in outcomes if outcome.record is None]:
        raise RuntimeError(failed[0])
    return 3600 * 2 * jobs / (time.perf_counter() - start)


@in_one_line()
def main() -> None:
    given = arguments(__doc__, rounds=2, jobs=(1, 2, 4), model="wrn16_1", cells=0, defense="none")
    rates = {}
    rules = replace(CBD, model=given.model)
    speeds = together(rules, given.jobs, str(given.device), given.rounds)
    show(
        f"plain training of {given.model} on random images, batch {CBD.recipe.batch_size}",
        "images/s",
        speeds,
        f"{given.jobs[0]} at a time",
    )
    for count in given.jobs if given.cells else ():
        with tempfile.TemporaryDirectory() as folder:
            suite = Suite("grid", CBD, (given.dataset,), ("badnets",), (given.defense,)).changed(
                epochs=given.cells, model=given.model
            )
            rates[str(count)] = cells_an_hour(
                suite,
                Options(out=Path(folder), data=given.data, device=str(given.device)),
                count,
            )
            print(
                f"  --jobs {count}: {rates[str(count)]:,.1f} cells an hour ({given.defense}, "
                f"{given.cells} epochs)"
            )
    keep("grid", given, speeds, model=given.model, cells_an_hour=rates)


if __name__ == "__main__":
    main()

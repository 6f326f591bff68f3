"""The numbers of records: a row a record, and the mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .metrics import Metric
from .records import Record, precision, wilson

# data set, poisoning rate, attack, defense
Key = tuple[str, float, str, str]
# the same without the defense
Place = tuple[str, float, str]
NAN = float("nan")


@dataclass(frozen=True)
class Number:
    """The mean over seeds in percent, their sample standard deviation, and how many there are."""

    mean: float = NAN
    std: float = NAN
    count: int = 0

    def __str__(self) -> str:
        return self.text()

    def text(self, decimals: int = 2) -> str:
        """As it is printed."""
        if math.isnan(self.mean):
            return "--"
        spread = f" ± {self.std:.{decimals}f}" if self.count > 1 else ""
        return f"{self.mean:.{decimals}f}{spread}"


def of(values: Sequence[float]) -> Number:
    """The summary of the values of several seeds."""
    if not values:
        return Number()
    return Number(fmean(values), stdev(values) if len(values) > 1 else NAN, len(values))


def key(record: Record) -> Key:
    """The cell of a record, whatever its seed."""
    cell = record["cell"]
    return cell["dataset"], record["spec"]["rate"], cell["attack"], cell["defense"]


def values(records: Sequence[Record], metrics: Sequence[Metric]) -> list[dict[str, float]]:
    """Each metric of each record in percent, nan where it cannot be had.

    A derived one is read against the record of No Defense with the same data set, rate, attack and
    seed, if it is among them.
    """
    bare = {where(r): r for r in records if r["cell"]["defense"] == "none"}
    rows = []
    for record in records:
        baseline = bare.get(where(record))
        numbers = {metric.key: metric.of(record, baseline) for metric in metrics}
        rows.append({name: NAN if value is None else value for name, value in numbers.items()})
    return rows


def where(record: Record) -> tuple[Any, ...]:
    """Data set, poisoning rate, attack and seed: where No Defense is the baseline of others."""
    return *key(record)[:3], record["spec"]["seed"]


def summary(records: Sequence[Record], metrics: Sequence[Metric]) -> dict[Key, dict[str, Number]]:
    """Each metric's summary over seeds, by cell, in the order of the records."""
    groups: dict[Key, list[dict[str, float]]] = {}
    for record, row in zip(records, values(records, metrics), strict=True):
        groups.setdefault(key(record), []).append(row)

    def known(rows: list[dict[str, float]], name: str) -> list[float]:
        return [row[name] for row in rows if not math.isnan(row[name])]

    return {
        cell: {metric.key: of(known(rows, metric.key)) for metric in metrics}
        for cell, rows in groups.items()
    }


def frame(records: Sequence[Record], metrics: Sequence[Metric]) -> Any:
    """A pandas.DataFrame with a row a record: what was run, each metric in percent, counted ones
    with their 95 % Wilson interval, what was given, where it ran.
    """
    import pandas as pd

    rows = []
    for record, numbers in zip(records, values(records, metrics), strict=True):
        spec = record["spec"]
        around = record["surroundings"]
        protocol = spec["protocol"]
        rows.append(
            dict(record["cell"])
            | {
                "rate": spec["rate"],
                "seed": spec["seed"],
                "protocol": f"{protocol['name']} v{protocol['version']}",
            }
            | _counted(record, numbers)
            | _probes(record)
            | _suspects(record)
            | {
                "clean_images": record["given"]["clean_images"],
                "training_seconds": record["time"]["training"],
                "device": around["device"],
                "precision": precision(record),
                "commit": around["commit"],
            }
        )
    # Arrow, where it is installed, takes no names whose bytes are no UTF-8
    with pd.option_context("mode.string_storage", "python"):
        return pd.DataFrame(rows)


def _counted(record: Record, numbers: dict[str, float]) -> dict[str, float]:
    """The metrics of a record, and the intervals and counts of those that are counted."""
    row: dict[str, float] = {}
    for name, number in numbers.items():
        row[name] = number
        hits, n = record["metrics"].get(name, (0, 0))
        if n:
            low, high = wilson(hits, n)
            row |= {f"{name}_low": 100 * low, f"{name}_high": 100 * high, f"{name}_n": n}
    return row


def _probes(record: Record) -> dict[str, float]:
    """The metrics of the other networks that were measured."""
    return {
        f"{probe} {name}": 100 * hits / n
        for probe, counts in sorted(record["probes"].items())
        for name, (hits, n) in counts.items()
        if n
    }


def _suspects(record: Record) -> dict[str, float | None]:
    """How well the defense's own suspicion finds the poisoned images."""
    told = record.get("suspects", {})
    return {
        f"{name} {what}": share
        for name, shares in sorted(told.items())
        for what, share in shares.items()
    }

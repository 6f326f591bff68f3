"""The tables that CBD (CVPR 2023) and MCCI (ICLR 2025) print, as CSV: percent, an empty field where
the paper leaves a cell out.

``mcci_table7`` is in fractions, as printed.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

DATASETS = {
    "CIFAR-10": "cifar10",
    "GTSRB": "gtsrb",
    **dict.fromkeys(("ImageNet Subset", "ImageNet-subset", "ImageNet subset"), "imagenette"),
}
Reported = dict[tuple[str, str, str, float], dict[str, float]]


def rows(table: str) -> Iterator[dict[str, str]]:
    """The rows of a table, ``rows("cbd_table1")``."""
    with Path(__file__).with_name(f"{table}.csv").open(newline="") as file:
        yield from csv.DictReader(file)


def reported(
    table: str,
    attacks: Mapping[str, str],
    defenses: Mapping[str, str],
    dataset: str = "cifar10",
    rate: float = 0.1,
) -> Reported:
    """What a table prints of our cells: its names of attacks and defenses -> ours; ``dataset`` and
    ``rate`` where it has no column of them.
    """
    found: Reported = {}
    for row in rows(table):
        if row["attack"] in attacks and row["defense"] in defenses:
            # no attack has the rate 0 there, and poisons nothing at any rate here
            own = float(row.get("rate") or rate) or rate
            key = (
                DATASETS[row["dataset"]] if "dataset" in row else dataset,
                attacks[row["attack"]],
                defenses[row["defense"]],
                own,
            )
            found[key] = {
                metric: float(row[metric])
                for metric in ("ca", "asr", "arr", "seconds")
                if row.get(metric)
            }
    return found


def wide(
    table: str,
    column: str,
    attacks: Mapping[str, str],
    defenses: Mapping[str, str],
    *,
    factor: float = 1.0,
    dataset: str = "cifar10",
    rate: float = 0.1,
) -> Reported:
    """The same of a table whose columns are ``none_ca``, ``avg_asr``, ...: ``column`` holds the
    attack; ``defenses``: beginning of a column -> ours.
    """
    found: Reported = {}
    for row in rows(table):
        for start, defense in defenses.items():
            numbers = {
                m: factor * float(row[f"{start}_{m}"])
                for m in ("ca", "asr", "arr")
                if row.get(f"{start}_{m}")
            }
            if row[column] in attacks and numbers:
                found[dataset, attacks[row[column]], defense, rate] = numbers
    return found

"""A suite as one HTML page that needs no network: leaderboard, paper's table, plots, triggers,
every cell with its curves and how to run it again.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from . import __version__, plots, tables
from .errors import InputError
from .files import write_whole
from .records import METRICS, Record, precision
from .suite import Suite

DRAWN = {
    "bars": "CA, ASR and ARR by attack and defense; whiskers are the 95 % interval of one run, or "
    "the range over seeds.",
    "heatmap": "The whole grid; blue is good in all three.",
    "scatter": "ASR against CA, a point a cell; good is at the lower right.",
    "rates": "Over the poisoning rate.",
    "losses": "Training losses; with those of clean and of poisoned images, which no defense sees.",
    "learning": "CA and ASR of test images over the seconds of training, a line a stage.",
    "tsne": "What the networks make of test images, by t-SNE.",
}


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def curve(values: Sequence[float], width: int = 220, height: int = 60) -> str:
    """The points of an SVG polyline that fills width x height, the smallest value at the bottom."""
    low = min(values)
    high = max(values)
    across = width / max(1, len(values) - 1)
    down = height / ((high - low) or 1)
    return " ".join(
        f"{i * across:.1f},{height - (value - low) * down:.1f}" for i, value in enumerate(values)
    )


def rows(records: Sequence[Record], suite: Suite) -> list[dict[str, Any]]:
    """A row a data set, attack, rate and defense: means over seeds, the published numbers and what
    was not reproduced, the records.
    """
    reported = {
        (r["dataset"], r["attack"], r["rate"], r["defense"]): r
        for r in tables.against(records, suite).to_dict("records")
    }
    found = []
    for key, numbers in tables.summary(records).iterrows():
        dataset, rate, attack, defense = key
        own = [
            r
            for r in records
            if r["cell"] == {"dataset": dataset, "attack": attack, "defense": defense}
            and r["spec"]["rate"] == rate
        ]
        beside = reported.get((dataset, attack, rate, defense))
        row = {
            "dataset": dataset,
            "attack": attack,
            "defense": defense,
            "rate": rate,
            "records": own,
            "clean": own[0]["given"]["clean_images"],
        }
        row |= {
            m: {
                "mean": numbers[m, "mean"],
                "std": numbers[m, "std"],
                "reported": (beside or {}).get(f"{m} reported"),
            }
            for m in METRICS
        }
        row |= {
            "seconds": sum(r["time"]["training"] for r in own) / len(own),
            "compared": beside is not None,
        }
        found.append(row | {"far": beside["not reproduced"] if beside else ""})
    return found


def cells(records: Sequence[Record], suite: Suite, folder: Path) -> Mapping[int, dict[str, Any]]:
    """What is shown of each record, by its identity: facts in pairs, curves, and the command that
    runs it again.
    """
    paths = {(c.dataset, c.attack, c.defense, c.rate, c.seed): c.path() for c in suite.cells()}
    shown = {}
    for number, record in enumerate(records):
        spec = record["spec"]
        around = record["surroundings"]
        path = paths[
            (
                *(record["cell"][key] for key in ("dataset", "attack", "defense")),
                spec["rate"],
                spec["seed"],
            )
        ]
        file, where, to = (
            shlex.quote(str(place)) for place in (folder / path, folder, folder.parent)
        )
        again = f"rm {file}\nbbx run {where} --out {to} --only {shlex.quote(path.stem)} --data DIR"
        hits = {
            m.upper(): f"{record['metrics'][m][0]:,} of {record['metrics'][m][1]:,}"
            for m in METRICS
        }
        probes = {
            f"{name}, percent": ", ".join(
                f"{m.upper()} {100 * h / n:.2f}" for m, (h, n) in found.items() if n
            )
            for name, found in record["probes"].items()
        }
        facts = (
            hits | probes | {key.replace("_", " "): f"{n:,}" for key, n in record["given"].items()}
        )
        facts |= {
            "training": f"{record['time']['training']:,.0f} s",
            "device": around["device"],
            "precision": precision(record),
        }
        facts |= {
            "commit": around["commit"] or "unknown",
            "versions": ", ".join(f"{name} {v}" for name, v in around["versions"].items()),
        }
        facts |= {
            f"digest of the {what}": around[key]
            for key, what in (("data", "data"), ("poison", "poisoned images"))
            if key in around
        }
        curves = [
            (name, curve(values), values)
            for name, values in record["curves"].items()
            if len(values) > 1
        ]
        shown[id(record)] = {
            "number": number,
            "facts": facts,
            "curves": curves,
            "again": again,
            "spec": json.dumps(spec, indent=1, sort_keys=True),
        }
    return shown


def render(records: Sequence[Record], suite: Suite, folder: Path) -> str:
    """The page, from the records of a suite and the pictures of its triggers in ``folder``.

    Raises:
        InputError: no records.
    """
    if not records:
        raise InputError(f"no records of {suite.name} yet: bbx run {suite.name}")
    draw = plots.DRAWINGS | {
        "tsne": lambda *_: plots.tsne(plots.panels(suite, folder)),
        "losses": partial(plots.losses, audited=True),
    }
    pictures = []
    for kind, words in DRAWN.items():
        try:
            figure = draw[kind](records, suite)
        # no rates to draw over, nothing looked into
        except InputError:
            continue
        pictures.append((kind, words, data_uri(plots.svg(figure), "image/svg+xml")))
    examples = sorted(
        {
            (c.dataset, c.attack, folder / c.path().parent.parent / "examples.png")
            for c in suite.cells()
            if c.attack != "none"
        }
    )
    triggers = [
        (f"{attack}, {dataset}", data_uri(file.read_bytes(), "image/png"))
        for dataset, attack, file in examples
        if file.exists()
    ]
    downloads = [
        (f"{suite.name}.{suffix}", data_uri(tables.render(records, suite, form).encode(), kind))
        for form, suffix, kind in (
            ("csv", "csv", "text/csv"),
            ("latex", "tex", "application/x-tex"),
            ("markdown", "md", "text/markdown"),
        )
    ]
    shown = rows(records, suite)
    page = Environment(
        loader=PackageLoader(__package__),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html")
    return page.render(
        suite=suite,
        rows=shown,
        reported=[
            m
            for m in METRICS
            if any(row[m]["reported"] == row[m]["reported"] is not None for row in shown)
        ],
        cells=cells(records, suite, folder),
        layout=tables.layout(records, suite),
        caption=tables.caption(records, suite),
        metrics={
            m: f"{name} {'↑' if arrow == 'up' else '↓'}"
            for m, (name, arrow) in tables.ARROWS.items()
        },
        tolerance=tables.TOLERANCE,
        pictures=pictures,
        triggers=triggers,
        downloads=downloads,
        done=len(records),
        all=len(suite.cells()),
        identity=id,
        title=tables.title,
        version=__version__,
    )


def write(records: Sequence[Record], suite: Suite, folder: Path) -> Path:
    """Write ``report.html`` into ``folder``."""
    write_whole(folder / "report.html", render(records, suite, folder).encode())
    return folder / "report.html"

"""A suite as one HTML page that needs no network: ranking, cells with their curves and how to run
them again, the paper's table, plots, triggers.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, select_autoescape

from . import __version__, gather, pictures, plots, ranking, tables, verified
from .errors import InputError
from .files import write_text
from .frame import Key, key, summary
from .layout import caption, layout, present
from .metrics import COUNTED
from .naming import heads as titles
from .naming import labels, rate, title
from .reading import whole_png
from .records import Record, current, precision, wilson
from .suite import Suite, digest
from .tables import USUAL, USUAL_STYLE
from .verified import UNCHECKED

DRAWN = {
    "bars": "CA, ASR and ARR by attack and defense; whiskers are the 95 % interval of one run, or "
    "the range over seeds.",
    "heatmap": "The whole grid; blue is good in all three.",
    "scatter": "ASR against CA, a point a cell; good is at the lower right; the line joins "
    "what none beats in both.",
    "rates": "Over the poisoning rate.",
    "curve": "Along the curve of MCR between two networks; a ring where its model was taken.",
    "losses": "Training losses; with those of clean and of poisoned images, which no defense sees.",
    "sensitivity": "Over one option of a defense, the others being equal.",
    "learning": "CA and ASR of test images over the seconds of training, a line a stage.",
    "tsne": "What the networks make of test images, by t-SNE.",
}
# pictures of so many cells, whatever their seeds, are drawn on the page; larger ones take minutes
MOST_CELLS = {
    "bars": 300,
    "heatmap": 600,
    "rates": 300,
    "curve": 60,
    "sensitivity": 300,
    "losses": 60,
    "learning": 60,
    "tsne": 60,
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


def rows(records: Sequence[Record], suite: Suite, states: Sequence[str]) -> list[dict[str, Any]]:
    """A row a data set, attack, rate and defense: means over seeds, the published numbers and what
    was not reproduced, the records, and the weakest of their ``states``.
    """
    checked = {id(record): state for record, state in zip(records, states, strict=True)}
    reported = {
        (r["dataset"], r["rate"], r["attack"], r["defense"]): r
        for r in tables.against(records, suite)
    }
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    shown = []
    for cell, numbers in summary(records, USUAL).items():
        dataset, share, attack, defense = cell
        own = groups[cell]
        beside = reported.get(cell)
        row: dict[str, Any] = {"dataset": dataset, "attack": attack, "defense": defense}
        row |= {"rate": share, "records": own, "clean": own[0]["given"]["clean_images"]}
        row["seconds"] = sum(r["time"]["training"] for r in own) / len(own)
        row["state"] = min((checked[id(r)] for r in own), key=verified.ORDER.index)
        row["compared"] = beside is not None
        row["far"] = beside["not reproduced"] if beside else ""
        for metric in USUAL:
            told = beside[f"{metric.key} reported"] if beside else None
            row[metric.key] = {"number": numbers[metric.key], "reported": told}
        shown.append(row)
    return shown


def facts(record: Record) -> dict[str, str]:
    """What is shown of a record, by name."""
    around = record["surroundings"]
    counts = record["metrics"]
    ordered = [name for name in COUNTED if name in counts]
    told = {name.upper(): _with_interval(*counts[name]) for name in ordered}
    for name, probed in record["probes"].items():
        told[f"{name}, percent"] = ", ".join(
            f"{m.upper()} {100 * hits / n:.2f}" for m, (hits, n) in probed.items() if n
        )
    for name, suspicion in record.get("suspects", {}).items():
        told[f"{name}, finding the poisoned images"] = ", ".join(
            f"{what.upper()} {share:.3f}" for what, share in suspicion.items() if share is not None
        )
    told |= {name.replace("_", " "): f"{n:,}" for name, n in record["given"].items()}
    told["training"] = f"{record['time']['training']:,.0f} s"
    told["device"] = around["device"]
    told["precision"] = precision(record)
    told["commit"] = around["commit"] or "unknown"
    told["versions"] = ", ".join(f"{name} {v}" for name, v in around["versions"].items())
    for name, what in (("data", "data"), ("poison", "poisoned images")):
        if name in around:
            told[f"digest of the {what}"] = around[name]
    return told


def _with_interval(hits: int, n: int) -> str:
    """A count with its share and the 95 % interval of other test images."""
    if not n:
        return "0 of 0"
    low, high = wilson(hits, n)
    words = f"{100 * hits / n:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
    return f"{hits:,} of {n:,}, {words}"


def heat(records: Sequence[Record], suite: Suite) -> dict[str, Any]:
    """The grid to look at and to click: defenses down, attacks (and data sets and rates) across; of
    each field the record of the first seed, and the means.
    """
    means = summary(records, USUAL)
    first = {key(r): number for number, r in reversed(list(enumerate(records)))}
    attacks, defenses = present(records, suite)
    called = labels(attacks)
    places = list(dict.fromkeys(cell[:3] for cell in means))
    places.sort(key=lambda p: (suite.datasets.index(p[0]), attacks.index(p[2]), p[1]))
    several = [len({place[axis] for place in places}) > 1 for axis in (0, 1)]

    def field(cell: Key) -> dict[str, Any] | None:
        if cell not in means:
            return None
        numbers = [means[cell][metric.key].mean for metric in USUAL]
        return {"record": first[cell], "values": [None if n != n else n for n in numbers]}

    heads = []
    for dataset, share, attack in places:
        more = [dataset] if several[0] else []
        more += [rate(share)] if several[1] else []
        heads.append(", ".join([called[attack], *more]))
    rows = [
        (name, [field((*place, defense)) for place in places])
        for defense, name in titles(defenses).items()
    ]
    return {"heads": heads, "rows": rows}


def cells(
    records: Sequence[Record], suite: Suite, folder: Path, states: Sequence[str]
) -> dict[str, Any]:
    """All that a click shows of each record, for the page's script; parts of specs that many share
    stand there once.
    """
    grid = suite.unresolved()
    places = {(c.dataset, c.rate, c.attack, c.defense, c.seed): c for c in grid}
    parts: dict[str, int] = {}
    shown = []
    for record, state in zip(records, states, strict=True):
        spec = record["spec"]
        one = places[(*key(record), spec["seed"])]
        where = shlex.quote(str(folder))
        try:
            # of the version that there is now
            only = shlex.quote(one.path.stem)
        except InputError:
            # its plugin is not at hand
            only = shlex.quote(f"{one.stem}-{digest(spec)}")
        curves = [
            [f"{name}: {values[0]:.3g} to {values[-1]:.3g}, {len(values)} epochs", curve(values)]
            for name, values in record["curves"].items()
            if len(values) > 1
        ]
        cell = record["cell"]
        told = facts(record)
        if state != UNCHECKED:
            told["checked"] = f"{state}: {verified.MEANING[state]}"
        shown.append(
            {
                # what a link to it says
                "id": digest(spec),
                "title": f"{title(cell['defense'])} against {cell['attack']}",
                "where": f"{cell['dataset']}, poisoning rate {100 * spec['rate']:g} %, "
                f"seed {spec['seed']}",
                "facts": list(told.items()),
                "curves": curves,
                "again": f"bbx run {where} --out again --only {only} --data DIR",
                "spec": {
                    name: parts.setdefault(json.dumps(part, sort_keys=True), len(parts))
                    for name, part in spec.items()
                },
            }
        )
    return {"cells": shown, "parts": [json.loads(part) for part in parts]}


def _drawn(
    records: Sequence[Record], suite: Suite, folder: Path
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Kind, words and address of every picture, and the kinds that are too large for a page."""
    draw: dict[str, Any] = plots.DRAWINGS | {
        "tsne": lambda *_: pictures.tsne(pictures.panels(suite, folder)),
        "losses": partial(plots.losses, audited=True),
    }
    n = len({key(record) for record in records})
    large = [kind for kind in DRAWN if n > MOST_CELLS.get(kind, n)]
    shown = []
    for kind, words in DRAWN.items():
        if kind in large:
            continue
        try:
            figure = draw[kind](records, suite)
        except InputError:
            # no rates to draw over, nothing looked into
            continue
        shown.append((kind, words, data_uri(plots.svg(figure), "image/svg+xml")))
    return shown, large


def _triggers(suite: Suite, folder: Path) -> list[tuple[str, str]]:
    """The pictures of the triggers that lie in the suite's folder."""
    files = {
        (c.dataset, c.attack, folder / c.place.parent / "examples.png")
        for c in suite.unresolved()
        if c.attack != "none"
    }
    return [
        (f"{attack}, {dataset}", data_uri(file.read_bytes(), "image/png"))
        for dataset, attack, file in sorted(files)
        if whole_png(file)
    ]


def render(records: Sequence[Record], suite: Suite, folder: Path) -> str:
    """The page, from the records of a suite and the pictures of its triggers in ``folder``.

    Raises:
        InputError: no records.
    """
    gather.check(records, suite)
    kinds = {"csv": "text/csv", "latex": "application/x-tex", "markdown": "text/markdown"}
    downloads = [
        (f"{suite.name}.{tables.FORMATS[form]}", data_uri(text.encode(), kind))
        for form, kind in kinds.items()
        if (text := tables.render(records, suite, form))
    ]
    states = verified.states(folder, records)
    shown = rows(records, suite, states)
    ranked = _ranked(records, suite)
    table = layout(records, suite, USUAL_STYLE)
    numbers = {id(record): number for number, record in enumerate(records)}
    compared = [row for row in shown if row["compared"]]
    drawn, large = _drawn(records, suite, folder)
    # a script's text must not end its element
    details = json.dumps(cells(records, suite, folder, states)).replace("<", "\\u003c")
    page = _templates().get_template("report.html")
    return page.render(
        suite=suite,
        rows=shown,
        axes={name: list(dict.fromkeys(row[name] for row in shown)) for name in AXES},
        heat=heat(records, suite),
        reported=[m for m in USUAL if any(_told(row[m.key]["reported"]) for row in compared)],
        compared=compared,
        number=lambda record: numbers[id(record)],
        told=_told,
        details=details,
        # a column that says the same of all is none
        checked=[state for state in verified.ORDER if state in states and {*states} - {UNCHECKED}],
        meaning=verified.MEANING,
        standings=ranked and ranking.lines(ranked),
        heads=ranking.HEAD,
        note=ranked and ranking.note(ranked, suite),
        layout=table,
        caption=caption(records, suite, USUAL_STYLE, table.marked),
        metrics=USUAL,
        tolerance=tables.TOLERANCE,
        pictures=drawn,
        large=large,
        triggers=_triggers(suite, folder),
        downloads=downloads,
        done=len(records),
        all=len(suite.unresolved()),
        version=__version__,
    )


def _ranked(records: Sequence[Record], suite: Suite) -> ranking.Ranking | None:
    """The ranking; None if no defense has an attack that No Defense has, too."""
    try:
        return ranking.rank(current(records), suite)
    except InputError:
        return None


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )


AXES = ("dataset", "attack", "defense")


def _told(value: float | None) -> bool:
    """Whether a published number is there."""
    return value is not None and value == value


def index(folders: Sequence[tuple[Suite, Path, Sequence[Record]]], to: Path) -> Path:
    """Write ``index.html`` into ``to``: a line a suite, with who leads and a link to its page.

    Args:
        folders: suites, their folders below ``to``, and their records.
    """
    lines = []
    for suite, folder, records in folders:
        best = _ranked(records, suite)
        lead = [best.named[row.defense] for row in best.rows if row.rank == 1] if best else []
        lines.append(
            {
                "suite": suite,
                "href": quote(f"{folder.relative_to(to).as_posix()}/report.html"),
                "done": len(records),
                "all": len(suite.unresolved()),
                "lead": ", ".join(lead),
            }
        )
    page = _templates().get_template("index.html").render(lines=lines, version=__version__)
    write_text(to / "index.html", page)
    return to / "index.html"


def write(records: Sequence[Record], suite: Suite, folder: Path) -> Path:
    """Write ``report.html`` into ``folder``."""
    write_text(folder / "report.html", render(records, suite, folder))
    return folder / "report.html"

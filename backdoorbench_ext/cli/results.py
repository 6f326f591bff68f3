"""What came of it: status, table, rank, compare, plot, report, cite."""

# What a command alone needs is imported in it: PyTorch takes seconds, a typing error should not.
from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import records, registry, suite
from ..errors import InputError, nearest, one_line
from ..files import at_work
from ..options import Options
from ..progress import bars
from ..suite import Suite
from . import args
from .shared import chosen, command, err, grid_of, say

DRAWINGS = (
    "bars",
    "heatmap",
    "scatter",
    "rates",
    "curve",
    "losses",
    "times",
    "learning",
    "sensitivity",
    "gallery",
    "tsne",
)
FORMATS = ("pdf", "png", "svg")


@command(
    "bbx status demo",
)
def status(
    name: args.Name,
    scale: args.Scale = None,
    to: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
    as_json: args.AsJson = False,
) -> None:
    """Which cells of a suite are done, run now, have failed or are still to run."""
    grid, folder = grid_of(name, to, scale)
    rows = []
    for cell in grid.cells(resolver=suite.Resolver.kept(folder)):
        path = folder / cell.path
        row = {"cell": str(cell.path), "state": "to run", "error": ""}
        if path.exists():
            row["state"] = "done"
        elif who := at_work(folder / ".state" / cell.key):
            row["state"] = "running"
            row["error"] = who
        elif (why := records.why_failed(path)) is not None:
            row["state"] = "failed"
            row["error"] = why
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    counts = dict.fromkeys(("done", "running", "failed", "to run"), 0)
    for row in rows:
        counts[row["state"]] += 1
        print(f"{row['state']:7} {one_line(row['cell'])} {row['error']}".rstrip())
    shown = {state: n for state, n in counts.items() if n or state != "running"}
    print(", ".join(f"{n} {state}" for state, n in shown.items()))


@command(
    "bbx table demo --format latex",
    "bbx table runs/demo --metrics ca,asr,der --highlight cbd",
    "bbx table runs/demo --only '/none/ | /cbd'",
)
def table(
    name: args.Name,
    form: Annotated[str, typer.Option("--format", help="latex, markdown or csv")] = "markdown",
    against: Annotated[
        str,
        typer.Option(help="reported: beside each number the published one, and the difference"),
    ] = "",
    shown: args.Metrics = args.COUNTED,
    marks: Annotated[
        str,
        typer.Option(
            "--mark",
            help="which defenses may be bold: fell, those whose ASR is below half of No Defense's, "
            "or all",
        ),
    ] = "fell",
    decimals: Annotated[int, typer.Option(help="decimals of the numbers")] = 2,
    caption: Annotated[
        str, typer.Option(help="of LaTeX: short, with notes below the table, or full")
    ] = "short",
    highlight: Annotated[
        str, typer.Option(metavar="DEFENSE", help="a defense to shade, yours perhaps")
    ] = "",
    scale: args.Scale = None,
    to: args.Out = Path("runs"),
    only: args.Only = "",
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Print a suite's table, from the records that there are."""
    from .. import layout, tables

    style = layout.Style(chosen(shown), marks, decimals, highlight, caption)
    if against not in ("", "reported"):
        raise InputError(f"--against must be reported, not {against!r}")
    grid, folder = grid_of(name, to, scale)
    there = records.of_grid(grid, folder, only)
    text = tables.render(there, grid, form, bool(against), style)
    print(text, end="")


@command(
    "bbx rank demo",
    name="rank",
)
def rank_(
    name: args.Name,
    form: Annotated[str, typer.Option("--format", help="markdown or latex")] = "markdown",
    scale: args.Scale = None,
    to: args.Out = Path("runs"),
    only: args.Only = "",
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Who leads over all attacks, and how sure that is."""
    from .. import ranking

    grid, folder = grid_of(name, to, scale)
    there = _current(grid, folder, only)
    print(ranking.render(ranking.rank(there, grid), grid, form), end="")


@command(
    "bbx compare demo cbd none",
    "bbx compare runs/demo --baseline none",
    name="compare",
)
def compare_(
    name: args.Name,
    first: Annotated[
        str, typer.Argument(metavar="A", help="a defense, with its options as in the table")
    ] = "",
    second: Annotated[str, typer.Argument(metavar="B", help="the defense to compare with")] = "",
    baseline: Annotated[
        str, typer.Option(help="in place of A and B: every other defense against this one")
    ] = "",
    form: Annotated[str, typer.Option("--format", help="markdown, latex or json")] = "markdown",
    scale: args.Scale = None,
    to: args.Out = Path("runs"),
    only: args.Only = "",
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Is A better than B, and how sure is that: paired by image and by seed, attack by attack."""
    from .. import compare

    if bool(baseline) == bool(first) or bool(first) != bool(second):
        raise InputError("give two defenses, or --baseline and one")
    grid, folder = grid_of(name, to, scale)
    there = _current(grid, folder, only)
    pairs = [(first, second)] if first else compare.against(there, grid, baseline)
    found = [compare.compare(there, grid, a, b) for a, b in pairs]
    print(compare.render(found, grid, form), end="")


@command(
    "bbx plot demo",
    "bbx plot heatmap runs/demo --width column",
    "bbx plot heatmap demo --metrics asr --only '/none/ | /cbd' --to figures/asr.pdf",
    "bbx plot gallery attacks --data DIR",
)
def plot(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="[KIND] NAME",
            help=f"what to draw: {', '.join(DRAWINGS)}; bars if not said; then {args.NAME}",
        ),
    ],
    name: Annotated[str, typer.Argument(hidden=True)] = "",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="pdf, png or svg, several with commas; pdf,png if not told by --to's ending",
        ),
    ] = "",
    width: Annotated[
        str,
        typer.Option(
            metavar="column|text|INCHES",
            help="of a paper: a column (3.3 in) or the text (6.9 in); if not given, as wide as it "
            "comes",
        ),
    ] = "",
    shown: args.Metrics = args.COUNTED,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="the picture to write, or its folder: figures/asr.pdf; the suite's if not given",
        ),
    ] = None,
    scale: args.Scale = None,
    out_: args.Out = Path("runs"),
    data: args.Data = None,
    device: args.Device = "auto",
    only: args.Only = "",
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Draw a suite from the records that there are; the gallery of its triggers needs the data,
    tsne what bbx run --audit kept.
    """
    kind, name = (kind, name) if name else ("bars", kind)
    if kind not in DRAWINGS:
        raise nearest(kind, DRAWINGS, "drawings")
    grid, folder = grid_of(name, out_, scale)
    usual = "plot" if kind == "bars" else kind
    if to is None:
        to = folder / usual
    elif to.is_dir():
        to = to / usual
    stem, formats = _file(to, form)
    from .. import datasets, pictures, plots

    page = plots.inches(width)
    if kind in plots.DRAWINGS:
        there = records.of_grid(grid, folder, only)
        drawn = plots.DRAWINGS[kind](there, grid, chosen(shown), page=page)
    elif kind == "tsne":
        names = {datasets.NAMES.get(registry.parse(text)[0]) for text in grid.datasets}
        own = next(iter(names)) if len(names) == 1 else None
        drawn = pictures.tsne(pictures.panels(grid, folder, only), own or (), page)
    else:
        options = Options(out=folder.parent, data=data, device=device, plugins=tuple(plugin))
        drawn = pictures.gallery(_specimens(grid, only, options), page=page)
    for file in plots.save(drawn, stem, formats):
        print(file)


def _file(to: Path, form: str) -> tuple[Path, list[str]]:
    """A picture's path without its ending, and the formats to write it in.

    Raises:
        InputError: an unknown format, or an ending beside ``form``.
    """
    ending = to.suffix[1:]
    # figures/v1.0 has none
    if ending.isalpha():
        if form not in ("", ending):
            raise InputError(f"either --format or an ending of --to, not {form} and {ending}")
        to = to.with_suffix("")
        form = ending
    formats = (form or "pdf,png").split(",")
    for one in formats:
        if one not in FORMATS:
            raise InputError(f"format must be pdf, png or svg, not {one!r}")
    return to, formats


@command(
    "bbx report demo",
    "bbx report --index runs",
    name="report",
)
def report_(
    name: Annotated[str, typer.Argument(help=args.NAME)] = "",
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="in place of a name: all suites of a folder, and a page that lists them",
        ),
    ] = None,
    scale: args.Scale = None,
    to: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Write a suite's records as one HTML page: ranking, grid, cells, table, plots, triggers."""
    from .. import report

    if bool(name) == bool(index):
        raise InputError("give either a suite, or --index and a folder")
    if index is None:
        grid, folder = grid_of(name, to, scale)
        print(report.write(records.of_grid(grid, folder), grid, folder))
        return
    listed = []
    folders = [file.parent for file in sorted(index.glob(f"*/{suite.FILE}"))]
    with bars(err) as told:
        for done, folder in enumerate(folders):
            told("pages", folder.name, done, len(folders))
            grid = suite.load(str(folder))
            there = records.of_grid(grid, folder)
            if there:
                report.write(there, grid, folder)
                listed.append((grid, folder, there))
    if not listed:
        raise InputError(f"{index}: no folder in it holds results")
    print(report.index(listed, index))


@command(
    "bbx cite badnets cbd",
    "bbx cite runs/demo",
    name="cite",
)
def cite_(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="attacks and defenses, or a folder of results"),
    ] = None,
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Print BibTeX of this software and of the papers of what you ran."""
    from ..cite import cite

    grids = [suite.load(name) for name in names or [] if suite.is_results(name)]
    asked = [name for name in names or [] if not suite.is_results(name)]
    attacks = [name for grid in grids for name in grid.attacks]
    defenses = [name for grid in grids for name in grid.defenses]
    print(cite(asked, attacks, defenses), end="")


def _current(grid: Suite, folder: Path, only: str) -> list[records.Record]:
    """The records that methods may be judged by.

    Raises:
        InputError: there are none, or none whose path contains what ``only`` says.
    """
    from .. import gather

    there = records.of_grid(grid, folder, only)
    old = [name for kind in ("attack", "defense") for name in records.outdated(there, kind)]
    if old:
        say(f"left out, made by earlier versions: {', '.join(old)}")
    kept = records.current(there)
    gather.check(kept, grid)
    return kept


def _specimens(grid: Suite, only: str, options: Options) -> list[tuple[str, Any, Any]]:
    """Images before and after each attack of a suite."""
    from ..lab import Lab

    cells: dict[tuple[str, str], suite.Cell] = {}
    for cell in grid.cells(only):
        if cell.attack != "none":
            cells.setdefault((cell.dataset, cell.attack), cell)
    shown = []
    with bars(err) as report:
        for cell in cells.values():
            lab = Lab(cell, options, partial(report, cell.attack))
            lab.check()
            shown.append((cell.attack, *lab.specimen()))
    return shown

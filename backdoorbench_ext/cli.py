"""``bbx``: list, show, run, status, table, plot, poison, defend, tune, doctor. Exit codes: 0 all
done, 1 some cell failed, 2 bad input.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from . import (
    __version__,
    beside,
    cost,
    datasets,
    export,
    models,
    plots,
    records,
    registry,
    report,
    runner,
    suite,
    tables,
    tune,
)
from .devices import pick_device
from .errors import InputError, nearest
from .progress import bars
from .protocols import PROTOCOLS
from .suite import Suite
from .toolbox import attacks as toolbox
from .toolbox import commands

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)

DRAWINGS = (*plots.DRAWINGS, "gallery", "tsne")
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
KINDS = ("attacks", "defenses", "benchmarks", "models", "datasets", "protocols")
NAME = "a benchmark's name, a .py file that defines SUITE, or a folder of results"
Name = Annotated[str, typer.Argument(help=NAME)]
Out = Annotated[Path, typer.Option("--out", help="folder of the results, one folder a suite")]
Only = Annotated[
    str,
    typer.Option(
        "--only",
        help="only the cells whose path contains this text, or each of several words: 'cifar10 "
        "/fp/'",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for scripts")]


def _register(files: list[Path]) -> list[Path]:
    for file in files:
        registry.add_file(file)
    return files


Plugins = Annotated[
    list[Path],
    typer.Option(
        "--plugin",
        callback=_register,
        help="a .py file with an attack, a defense or a SUITE; may be given several times",
    ),
]
NO_FILES: list[Path] = []
Device = Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")]
Data = Annotated[Path | None, typer.Option(help="folder of the data sets' files")]
Download = Annotated[
    bool, typer.Option("--download", help="let torchvision download what is missing into --data")
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", help="shorten or lengthen every training; makes cells of their own"),
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="run on this share of the training set for this share of the epochs, of the methods' "
        "own too; makes cells of their own"
    ),
]


def _count(text: str) -> str:
    if text not in ("", "auto") and not (text.isdecimal() and int(text)):
        raise InputError(f"--jobs must be a number of at least 1, or auto, not {text!r}")
    return text


Jobs = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        callback=_count,
        help="trainings at a time, each in a process; by default one a core on a CPU, one on a "
        "GPU; auto tries out what is best",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="another network, by timm's name (with a tag of timm's: pretrained); makes cells of "
        "their own",
    ),
]


def names(kind: str) -> dict[str, str]:
    """Every name of a kind and one line on it."""
    if kind == "models":
        known = {
            name: (inspect.getdoc(getattr(models, name)) or "").splitlines()[0]
            for name in models.OURS
        }
        return known | {
            "...": "and every name of timm; with a tag (tf_efficientnet_b0.aa_in1k) from those "
            "weights"
        }
    if kind == "datasets":
        return dict.fromkeys(datasets.names(), "")
    if kind == "protocols":
        return {name: str(protocol) for name, protocol in PROTOCOLS.items()}
    found = {}
    for name in registry.modules(kind):
        try:
            found[name] = (inspect.getdoc(registry.module(kind, name)) or "").partition("\n")[0]
        # one broken plugin must not hide the others
        except InputError as error:
            found[name] = f"broken: {error}"
    return found | (toolbox.names() if kind == "attacks" else {})


@app.command("list")
def list_(
    kind: Annotated[
        str, typer.Argument(help="one of " + ", ".join(KINDS) + "; all of them if not given")
    ] = "",
    plugin: Plugins = NO_FILES,
    as_json: AsJson = False,
) -> None:
    """What there is: attacks, defenses, benchmarks, models, datasets, protocols."""
    if kind and kind not in KINDS:
        raise nearest(kind, KINDS, "kinds")
    found = {k: names(k) for k in ([kind] if kind else KINDS)}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for k, entries in found.items():
        table = Table(
            title=k, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2)
        )
        for name, line in entries.items():
            table.add_row(name, escape(line))
        out.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="an attack, a defense, a benchmark or a protocol")],
    measure: Annotated[
        bool,
        typer.Option(
            "--cost",
            help="time a few steps of each stage of a defense here, against plain training",
        ),
    ] = False,
    protocol: Annotated[str, typer.Option(help="of --cost: " + ", ".join(PROTOCOLS))] = "cbd",
    device: Device = "auto",
    plugin: Plugins = NO_FILES,
) -> None:
    """A method's paper, options, needs and cost; a benchmark's grid and protocol."""
    if protocol not in PROTOCOLS:
        raise nearest(protocol, PROTOCOLS, "protocols")
    if measure:
        _show_cost(name, protocol, device)
        return
    found = [
        kind for kind in ("attacks", "defenses", "benchmarks") if name in registry.modules(kind)
    ]
    if name in toolbox.names():
        out.print(
            f"[bold]{name}[/bold]  (attack: "
            f"{toolbox.names()[name]})\n\n{escape(inspect.getdoc(toolbox) or '')}",
            highlight=False,
        )
        return
    if not found and name not in PROTOCOLS:
        raise nearest(
            name,
            [n for k in ("attacks", "defenses", "benchmarks", "protocols") for n in names(k)],
            "methods, benchmarks and protocols",
        )
    for kind in found:
        mod = registry.module(kind, name)
        out.print(f"[bold]{name}[/bold]  ({kind[:-1]}, {mod.__file__})\n", highlight=False)
        out.print(inspect.getdoc(mod) or "", highlight=False, markup=False)
        if kind == "benchmarks":
            _show_suite(suite.load(name))
        else:
            _show_method(registry.get_class(kind, name))
        out.print()
    if name in PROTOCOLS:
        out.print(str(PROTOCOLS[name]), highlight=False, markup=False)


def _show_method(cls: type[Any]) -> None:
    out.print("\n" + (inspect.getdoc(cls) or "") + "\n", highlight=False, markup=False)
    table = Table("option", "type", "default", "range", "meaning", box=None)
    for f in fields(cls):
        low = f.metadata.get("low")
        high = f.metadata.get("high")
        choices = f.metadata.get("choices", ())
        span = ", ".join(choices) or (
            ""
            if low is None and high is None
            else f"{'' if low is None else low} to {'' if high is None else high}".strip()
        )
        default = (
            "required"
            if f.default is MISSING
            else "not set"
            if f.default is None
            else repr(f.default)
        )
        table.add_row(f.name, str(f.type), default, span, escape(f.metadata.get("meaning", "")))
    out.print(table)
    if hasattr(cls, "clean_images"):
        method = cls()
        needed = "the whole reserve" if method.clean_images is None else f"{method.clean_images}"
        if method.clean_per_class:
            needed = f"{method.clean_per_class} of each class"
        out.print(f"\nclean images needed by default: {needed}", highlight=False)
        out.print(
            "cost in epochs of plain training, measured here: bbx show "
            f"{cls.__module__.rpartition('.')[2]} --cost",
            highlight=False,
        )


def _show_cost(name: str, protocol: str, device: str) -> None:
    rules = PROTOCOLS[protocol].on("cifar10")
    stages = cost.cost(registry.create("defenses", name), rules, device=pick_device(device))
    table = Table("stage", Column("epochs of plain training", justify="right"), box=None)
    for stage, epochs in stages.items():
        table.add_row(
            escape(stage) + " (shared by all that need it)" * (stage == "victim"), f"{epochs:.1f}"
        )
    table.add_row("all", f"{sum(stages.values()):.1f}")
    out.print(
        f"{name}, 50,000 images of 32x32, {rules.model}, batch {rules.recipe.batch_size}; on "
        f"{records.surroundings(pick_device(device))['device']}",
        highlight=False,
        markup=False,
    )
    out.print(table)


def _show_suite(grid: Suite) -> None:
    table = Table(box=None, show_header=False)
    for label, values in (
        ("data sets", grid.datasets),
        ("attacks", grid.attacks),
        ("defenses", grid.defenses),
        ("rates", grid.rates),
        ("seeds", grid.seeds),
    ):
        table.add_row(label, escape(", ".join(map(str, values))))
    table.add_row("cells", str(len(grid.cells())))
    for dataset in grid.datasets:
        table.add_row("protocol", escape(str(grid.protocol.on(dataset))))
    out.print()
    out.print(table)


def _numbers(text: str, kind: type[Any], what: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{what} must be numbers with commas between them, not {text!r}") from None


@app.command()
def run(
    name: Annotated[
        str,
        typer.Argument(
            help="a benchmark's name, or a .py file that defines SUITE; not needed with --dataset"
        ),
    ] = "",
    dataset: Annotated[
        str, typer.Option(help="a grid of your own: data sets, with commas between them")
    ] = "",
    attacks: Annotated[str, typer.Option(help="its attacks, e.g. badnets,'blend[alpha=0.2]'")] = "",
    defenses: Annotated[str, typer.Option(help="its defenses, e.g. none,'cbd[beta=1e-3]'")] = "",
    protocol: Annotated[str, typer.Option(help="its protocol: " + ", ".join(PROTOCOLS))] = "cbd",
    rates: Annotated[str, typer.Option(help="poisoning rates, e.g. 0.05,0.1")] = "",
    seeds: Annotated[str, typer.Option(help="seeds, e.g. 0,1,2")] = "",
    target: Annotated[
        int | None, typer.Option(help="another target label; makes cells of their own")
    ] = None,
    only: Only = "",
    scale: Scale = None,
    epochs: Epochs = None,
    model: Model = None,
    device: Device = "auto",
    jobs: Jobs = "",
    compile: Annotated[
        str, typer.Option(help=f"let torch.compile work on plain training: {', '.join(COMPILE)}")
    ] = "",
    data: Data = None,
    download: Download = False,
    to: Out = Path("runs"),
    save_models: Annotated[
        bool,
        typer.Option("--save-models", help="keep every network beside its record, as .safetensors"),
    ] = False,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="log CA, ASR, ARR and the losses of clean and poisoned images by epoch, keep "
            "embeddings: for bbx plot learning, losses, tsne",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would run, and stop")
    ] = False,
    plugin: Plugins = NO_FILES,
) -> None:
    """Train and measure every cell that has no record yet; then write the tables and the plot."""
    if bool(name) == bool(dataset):
        raise InputError(
            "give either a benchmark (bbx list benchmarks) or --dataset, --attacks and --defenses"
        )
    if name:
        if attacks or defenses:
            raise InputError(
                "--attacks and --defenses go with --dataset; a benchmark has its own: use --only"
            )
        grid = suite.load(name)
    else:
        if not attacks or not defenses:
            raise InputError(
                "a grid of your own needs --attacks and --defenses, e.g. --attacks badnets,blend "
                "--defenses none,cbd"
            )
        grid = _own_grid(dataset, attacks, defenses, protocol)
    others = _numbers(seeds, int, "--seeds")
    shares = _numbers(rates, float, "--rates")
    grid = grid.changed(
        scale=scale, epochs=epochs, model=model, target=target, seeds=others, rates=shares
    )
    audit = audit or grid.audit
    options = runner.Options(
        out=to,
        data=data,
        download=download,
        device=device,
        models=save_models,
        compile=compile,
        audit=audit,
        plugins=tuple(plugin),
    )
    if compile and compile not in COMPILE:
        raise InputError(f"--compile must be one of {', '.join(COMPILE)}, not {compile!r}")
    _run(grid, only, options, jobs, dry_run, own=not name)


def _jobs(text: str, todo: list[suite.Cell], options: runner.Options) -> int | None:
    """What ``--jobs`` asks for; ``auto`` is tried out with the first cell's network."""
    if text != "auto":
        return int(text) if text else None
    if (most := len(runner.groups(todo))) <= 1:
        return 1
    found = runner.parts(todo[0], options)
    count, speeds = beside.best(
        found.rules,
        tuple(found.train.x.shape[1:]),
        len(found.train.classes),
        options.device,
        min(most, os.cpu_count() or 1),
    )
    tried = ", ".join(f"{jobs}: {speed:,.0f}" for jobs, speed in speeds.items())
    err.print(
        f"--jobs auto: {count} at a time (images/s of {found.rules.model} together by trainings at "
        f"a time: {tried})",
        highlight=False,
        soft_wrap=True,
    )
    return count


def _run(
    grid: Suite,
    only: str,
    options: runner.Options,
    jobs: str = "",
    dry_run: bool = False,
    *,
    own: bool,
) -> None:
    """What ``run`` and ``defend`` have in common; a grid of one's ``own`` adds all its axes to what
    ran under its name before.
    """
    to = options.out
    cells = grid.cells(only)
    todo = runner.missing(grid, cells, options)
    taken = [cell.path() for cell, _ in runner.elsewhere(todo, options)]
    rest = [cell for cell in todo if cell.path() not in taken]
    copied = f"{len(taken)} copied from other folders of {to}, " if taken else ""
    err.print(
        f"{grid.name}: {len(cells)} cells, {len(cells) - len(todo)} done, {copied}{len(rest)} to "
        "run",
        highlight=False,
        soft_wrap=True,
    )
    if dry_run:
        for cell in rest:
            print(to / grid.name / cell.path())
        return
    folder = to / grid.name
    axes = suite.AXES if own else ("rates", "seeds")
    outcomes = runner.run(
        grid.joined(folder, axes), cells, options, jobs=_jobs(jobs, rest, options), console=err
    )
    # again: another run may have added to it meanwhile
    grid = grid.joined(folder, axes)
    found = _records(grid, folder)
    if found:
        grid.save(folder)
        files = [
            *tables.write(found, grid, folder),
            *plots.save(plots.bars(found, grid), folder / "plot"),
        ]
        out.print(_summary(found, grid))
        err.print("wrote " + ", ".join(map(str, files)), highlight=False, soft_wrap=True)
    failed = sum(outcome.record is None for outcome in outcomes)
    if failed:
        err.print(
            f"{failed} of {len(outcomes)} cells failed; the reasons lie beside the records as "
            ".failed; the same command tries them again",
            style="red",
        )
        raise typer.Exit(1)
    if not rest:
        err.print("nothing to run: every cell has its record", highlight=False)


def _own_grid(dataset: str, attacks: str, defenses: str, protocol: str) -> Suite:
    if protocol not in PROTOCOLS:
        raise nearest(protocol, PROTOCOLS, "protocols")
    axes = [tuple(registry.split(text)) for text in (dataset, attacks, defenses)]
    return Suite(
        "own" if protocol == "cbd" else f"own-{protocol}",
        PROTOCOLS[protocol],
        axes[0],
        axes[1],
        axes[2],
    )


def _summary(found: list[records.Record], grid: Suite) -> Table:
    table = Table(
        Column("attack", overflow="fold"),
        Column("defense", overflow="fold"),
        "CA ↑",
        "ASR ↓",
        "ARR ↑",
        title=escape(f"{grid.name}, percent"),
        title_justify="left",
        box=None,
    )
    numbers = tables.summary(found)
    for (_dataset, _rate, attack, defense), row in numbers.iterrows():
        table.add_row(
            escape(attack),
            escape(defense),
            *(f"{row[metric, 'mean']:.2f}" for metric in records.METRICS),
        )
    return table


def _grid(name: str, to: Path, scale: float | None = None) -> tuple[Suite, Path]:
    """A suite, at a scale, and the folder of its results, which may be what was named."""
    if suite.is_results(str(to / name)) and name not in registry.modules("benchmarks"):
        # a grid of one's own, by the name that it was run under
        name = str(to / name)
    grid = suite.load(name).changed(scale=scale)
    folder = Path(name) if suite.is_results(name) else to / grid.name
    return grid.joined(folder), folder


def _records(grid: Suite, folder: Path) -> list[records.Record]:
    return [records.read(path) for cell in grid.cells() if (path := folder / cell.path()).exists()]


@app.command()
def status(
    name: Name,
    scale: Scale = None,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
    as_json: AsJson = False,
) -> None:
    """Which cells of a suite are done, failed or still to run."""
    grid, folder = _grid(name, to, scale)
    rows = []
    for cell in grid.cells():
        path = folder / cell.path()
        failed = path.with_suffix(".failed")
        state = "done" if path.exists() else "failed" if failed.exists() else "to run"
        why = failed.read_text().strip().splitlines()[-1] if state == "failed" else ""
        rows.append({"cell": str(cell.path()), "state": state, "error": why})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        out.print(
            f"{row['state']:7} {row['cell']} {row['error']}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    out.print(
        ", ".join(
            f"{sum(r['state'] == s for r in rows)} {s}" for s in ("done", "failed", "to run")
        ),
        highlight=False,
    )


@app.command()
def table(
    name: Name,
    form: Annotated[str, typer.Option("--format", help="latex, markdown or csv")] = "markdown",
    against: Annotated[
        str, typer.Option(help="reported: beside each number the published one, and the difference")
    ] = "",
    scale: Scale = None,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Print a suite's table, from the records that there are."""
    if against not in ("", "reported"):
        raise InputError(f"--against must be reported, not {against!r}")
    grid, folder = _grid(name, to, scale)
    print(tables.render(_records(grid, folder), grid, form, against=bool(against)), end="")


@app.command("report")
def report_(
    name: Name, scale: Scale = None, to: Out = Path("runs"), plugin: Plugins = NO_FILES
) -> None:
    """Write a suite's records as one HTML page: leaderboard, table, plots, triggers, every cell."""
    grid, folder = _grid(name, to, scale)
    print(report.write(_records(grid, folder), grid, folder))


@app.command()
def plot(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="[KIND] NAME",
            help=f"what to draw: {', '.join(DRAWINGS)}; bars if not said; then {NAME}",
        ),
    ],
    name: Annotated[str, typer.Argument(hidden=True)] = "",
    form: Annotated[
        str, typer.Option("--format", help="pdf, png or svg, several with commas")
    ] = "pdf,png",
    scale: Scale = None,
    to: Out = Path("runs"),
    data: Data = None,
    device: Device = "auto",
    only: Only = "",
    plugin: Plugins = NO_FILES,
) -> None:
    """Draw a suite from the records that there are; the gallery of its triggers needs the data,
    tsne what bbx run --audit kept.
    """
    kind, name = (kind, name) if name else ("bars", kind)
    if kind not in DRAWINGS:
        raise nearest(kind, DRAWINGS, "drawings")
    grid, folder = _grid(name, to, scale)
    formats = form.split(",")
    for one in formats:
        if one not in ("pdf", "png", "svg"):
            raise InputError(f"format must be pdf, png or svg, not {one!r}")
    if kind in plots.DRAWINGS:
        drawn = plots.DRAWINGS[kind](_records(grid, folder), grid)
        stem = "plot" if kind == "bars" else kind
    elif kind == "tsne":
        drawn = plots.tsne(plots.panels(grid, folder, only))
        stem = kind
    else:
        cells = {
            (cell.dataset, cell.attack): cell
            for cell in reversed(grid.cells(only))
            if cell.attack != "none"
        }
        options = runner.Options(out=folder.parent, data=data, device=device, plugins=tuple(plugin))
        with bars(err) as report:
            shown = [
                (cell.attack, *runner.specimen(cell, options, partial(report, cell.attack)))
                for cell in list(cells.values())[::-1]
            ]
        drawn = plots.gallery(shown)
        stem = "gallery"
    for file in plots.save(drawn, folder / stem, formats):
        print(file)


@app.command()
def poison(
    attack: Annotated[str, typer.Option(help="the attack, with its options")],
    dataset: Annotated[str, typer.Option(help="the data set")],
    to: Annotated[Path, typer.Option(help="where to: a folder, or an .npz file")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="png, npz, or backdoorbench (a record); if not given, by the name of --to",
        ),
    ] = "",
    protocol: Annotated[
        str,
        typer.Option(
            help="target label, pool and reserve are its: "
            + ", ".join(PROTOCOLS)
            + "; if not given, backdoorbench for its format, else cbd"
        ),
    ] = "",
    rate: Annotated[
        float, typer.Option(help="poisoning rate, the share of all training images")
    ] = 0.1,
    seed: Annotated[
        int, typer.Option(help="of the choice of images, and of what the attack learns")
    ] = 0,
    target: Annotated[int | None, typer.Option(help="another target label")] = None,
    epochs: Epochs = None,
    model: Model = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    out_: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Write a poisoned data set: PNG folders with a manifest, an .npz file, or a record of
    BackdoorBench with its victim.
    """
    protocol = protocol or ("backdoorbench" if form == "backdoorbench" else "cbd")
    grid = _own_grid(dataset, attack, "none", protocol).changed(
        epochs=epochs, model=model, target=target, seeds=(seed,), rates=(rate,)
    )
    cells = grid.cells()
    if len(cells) > 1:
        raise InputError("give one attack and one data set")
    options = runner.Options(
        out=out_, data=data, download=download, device=device, plugins=tuple(plugin)
    )
    with bars(err) as report:
        if form == "backdoorbench":
            counts = commands.poison(cells[0], options, to, partial(report, attack))
        else:
            counts = export.poisoned(
                cells[0],
                options,
                to,
                form or ("npz" if to.suffix == ".npz" else "png"),
                partial(report, attack),
            )
    err.print(
        f"wrote {to}: " + ", ".join(f"{n} {name}" for name, n in counts.items()),
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def defend(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RECORD", help="folder of a record of BackdoorBench, with attack_result.pt"
        ),
    ],
    defense: Annotated[str, typer.Option(help="defenses, with commas between them")],
    dataset: Annotated[
        str,
        typer.Option(
            help="the clean data that the record was made from; if not given, the record's, from "
            "--data"
        ),
    ] = "",
    protocol: Annotated[
        str, typer.Option(help="how to train: " + ", ".join(PROTOCOLS))
    ] = "backdoorbench",
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="seeds, e.g. 0,1,2")] = "0",
    device: Device = "auto",
    jobs: Jobs = "",
    data: Data = None,
    download: Download = False,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Defend a record of BackdoorBench: its poisoned images, its network as the victim; with
    defense_result.pt where it knows the network.
    """
    if protocol not in PROTOCOLS:
        raise nearest(protocol, PROTOCOLS, "protocols")
    grid = commands.defending(
        folder,
        tuple(registry.split(defense)),
        dataset,
        PROTOCOLS[protocol],
        _numbers(seeds, int, "--seeds"),
    ).changed(epochs=epochs)
    options = runner.Options(
        out=to, data=data, download=download, device=device, models=True, plugins=tuple(plugin)
    )
    try:
        _run(grid, "", options, jobs, own=True)
    finally:
        for file in commands.results(grid, grid.cells(), options):
            err.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)


@app.command("tune")
def tune_(
    defense: Annotated[str, typer.Argument(help="the defense, with the options that stay")],
    dataset: Annotated[str, typer.Option(help="the data set")],
    attack: Annotated[str, typer.Option(help="the attack")] = "badnets",
    grid: Annotated[
        list[str],
        typer.Option(
            help="an option and its values, t1=3,5,8; several times; the defense's own choice if "
            "not given"
        ),
    ] = [],  # noqa: B006
    folds: Annotated[
        int, typer.Option(help="parts that the poisoned training set is split into")
    ] = 5,
    protocol: Annotated[str, typer.Option(help="protocol: " + ", ".join(PROTOCOLS))] = "cbd",
    rate: Annotated[float, typer.Option(help="poisoning rate")] = 0.1,
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    epochs: Epochs = None,
    model: Model = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Choose a defense's options by cross-validation on the poisoned training set."""
    axes: dict[str, list[Any]] = {}
    for text in grid:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise InputError(
                f"--grid must be an option and its values, like t1=3,5,8, not {text!r}"
            )
        axes[key] = [registry.parse(f"x[v={value}]")[1]["v"] for value in registry.split(values)]
    names_ = tune.choices(defense, axes)
    cell = (
        _own_grid(dataset, attack, "none", protocol)
        .changed(epochs=epochs, model=model, seeds=(seed,), rates=(rate,))
        .cells()[0]
    )
    options = runner.Options(
        out=to, data=data, download=download, device=device, plugins=tuple(plugin)
    )
    results = tune.cross_validate(cell, names_, folds, options, err)
    table = Table(
        Column("defense", overflow="fold"),
        "accuracy on held-out folds, %",
        "lowest",
        "highest",
        box=None,
    )
    for name, accuracy in results.items():
        table.add_row(
            escape(name),
            f"{100 * mean(accuracy):.2f}",
            f"{100 * min(accuracy):.2f}",
            f"{100 * max(accuracy):.2f}",
        )
    out.print(table)
    print(tune.best(results))


@app.command()
def doctor() -> None:
    """What this installation can do: versions, devices, precision, threads, and what is broken."""
    import torch

    from .devices import has_bf16

    device = pick_device()
    facts = records.surroundings(device)
    rows = [
        ("backdoorbench_ext", f"{__version__}, commit {facts['commit'] or 'unknown'}"),
        *facts["versions"].items(),
    ]
    rows += [
        ("device", facts["device"]),
        ("bf16", "computed by the device" if has_bf16(device) else "no: float32"),
        ("threads", str(facts["threads"])),
    ]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        rows.append(("GPU memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    broken = [
        f"{kind} {name}: {line}"
        for kind in ("attacks", "defenses", "benchmarks")
        for name, line in names(kind).items()
        if line.startswith("broken: ")
    ]
    rows += [("broken", line) for line in broken] or [("methods", "all import")]
    for label, value in rows:
        out.print(f"{label:18} {value}", highlight=False, markup=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        err.print(f"bbx: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on from here", highlight=False)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()

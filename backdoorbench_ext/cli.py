"""``bbx``: list, show, run, status, table, compare, rank, plot, report, poison, defend, tune,
check, export, doctor and more. Exit codes: 0 all done, 1 some cell failed, 2 bad input.
"""

# What a command alone needs is imported in it: PyTorch takes seconds, a typing error should not.
from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from . import __version__, catalogue, metrics, records, registry, suite
from .commands import command
from .errors import InputError, NoData, nearest, one_line, reason
from .files import at_work, locked
from .options import Options
from .progress import bars, say
from .protocols import PROTOCOLS, named
from .signals import Stopped, heeding
from .suite import Suite

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)

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
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
FORMATS = ("pdf", "png", "svg")
NAME = "a benchmark's name, a .py file that defines SUITE, or a folder of results"
PROTOCOL = ", ".join(PROTOCOLS)


# Any: Typer takes a generic alias for a class on Python 3.10
def _register(files: Any) -> Any:
    for file in files:
        registry.add_file(file)
    return files


def _count(text: str) -> str:
    if text not in ("", "auto") and not (text.isdecimal() and int(text)):
        raise InputError(f"--jobs must be a number of at least 1, or auto, not {text!r}")
    return text


def _metrics(text: str) -> str:
    for key in text.split(","):
        metrics.get(key.strip())
    return text


Name = Annotated[str, typer.Argument(help=NAME)]
Out = Annotated[Path, typer.Option("--out", help="folder of the results, one folder a suite")]
Only = Annotated[
    str,
    typer.Option(
        "--only",
        help="only the cells whose path contains this text, or each of several words: "
        "'cifar10 /fp/'",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for scripts")]
Plugins = Annotated[
    list[Path],
    typer.Option(
        "--plugin",
        callback=_register,
        # before the options whose values may be names that a plugin brings
        is_eager=True,
        help="a .py file with an attack, a defense, an executor, a SUITE or a METRIC; may be given "
        "several times",
    ),
]
COUNTED = ",".join(metrics.COUNTED)
NO_FILES: list[Path] = []
NO_TEXTS: list[str] = []
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
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="a state dict that the network of --model starts from, .safetensors or torch.save's",
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        "--metrics",
        callback=_metrics,
        help="the numbers to show, with commas between them: bbx list metrics",
    ),
]
Protocols = Annotated[str, typer.Option("--protocol", help=f"protocol: {PROTOCOL}")]
Seeds = Annotated[str, typer.Option(help="seeds, e.g. 0,1,2")]


def _say(text: str, console: Console = err) -> None:
    say(console, text)


@command(
    app,
    "bbx list defenses",
    "bbx list runs",
    name="list",
)
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help=f"one of {', '.join(catalogue.KINDS)}; all of them if not given; or runs: the "
            "results in --out"
        ),
    ] = "",
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
    as_json: AsJson = False,
) -> None:
    """What there is: attacks, defenses, benchmarks, models, datasets, protocols, metrics,
    executors; or runs.
    """
    if kind == "runs":
        there = {str(to): catalogue.runs(to)}
    elif kind and kind not in catalogue.KINDS:
        raise nearest(kind, (*catalogue.KINDS, "runs"), "kinds")
    else:
        there = {k: catalogue.names(k) for k in ([kind] if kind else catalogue.KINDS)}
    if as_json:
        print(json.dumps(there, indent=1))
        return
    for k, entries in there.items():
        table = Table(
            title=k, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2)
        )
        for name, line in entries.items():
            table.add_row(name, escape(line))
        out.print(table)


@command(
    app,
    "bbx show cbd",
    "bbx show cbd --cost",
)
def show(
    name: Annotated[str, typer.Argument(help="an attack, a defense, a benchmark or a protocol")],
    measure: Annotated[
        bool,
        typer.Option(
            "--cost",
            help="time a few steps of each stage of a defense, against plain training",
        ),
    ] = False,
    protocol: Annotated[str, typer.Option(help=f"of --cost: {PROTOCOL}")] = "cbd",
    device: Device = "auto",
    plugin: Plugins = NO_FILES,
) -> None:
    """A method's paper, options, needs and cost; a benchmark's grid and protocol."""
    from . import showing

    rules = named(protocol)
    if measure:
        showing.cost(out, name, rules, device)
    else:
        showing.show(out, name)


def _numbers(text: str, kind: type[Any], what: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{what} must be numbers with commas between them, not {text!r}") from None


@command(
    app,
    "bbx run demo",
    "bbx run cbd_table1 --scale 0.1 --data DIR --dry-run",
    "bbx run --dataset cifar10 --data DIR --attacks badnets,'blend[alpha=0.2]' --defenses none,cbd",
)
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
    attacks: Annotated[str, typer.Option(help="its attacks: badnets,'blend[alpha=0.2]'")] = "",
    defenses: Annotated[str, typer.Option(help="its defenses: none,'cbd[beta=1e-3]'")] = "",
    protocol: Annotated[str, typer.Option(help=f"its protocol: {PROTOCOL}")] = "cbd",
    called: Annotated[
        str, typer.Option("--name", help="its name, and that of its folder in --out")
    ] = "",
    rates: Annotated[str, typer.Option(help="poisoning rates, e.g. 0.05,0.1")] = "",
    seeds: Seeds = "",
    target: Annotated[
        int | None, typer.Option(help="another target label; makes cells of their own")
    ] = None,
    only: Only = "",
    scale: Scale = None,
    epochs: Epochs = None,
    model: Model = None,
    start: Weights = None,
    device: Device = "auto",
    jobs: Jobs = "",
    executor: Annotated[
        str, typer.Option(help="what runs the cells, in place of --jobs: bbx list executors")
    ] = "",
    compile: Annotated[
        str,
        typer.Option(help=f"let torch.compile work on plain training: {', '.join(COMPILE)}"),
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
    shard: Annotated[
        str, typer.Option(metavar="i/n", help="only the i-th of n shares of the trainings")
    ] = "",
    track: Annotated[
        str,
        typer.Option(help="tensorboard, mlflow or wandb: hand curves and metrics of new cells on"),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="say what would run and for how long, and check what it needs"
        ),
    ] = False,
    plugin: Plugins = NO_FILES,
) -> None:
    """Train and measure every cell that has no record yet; then write the tables and the plot."""
    if bool(name) == bool(dataset):
        raise InputError(
            "give either a benchmark (bbx list benchmarks) or --dataset, --attacks and --defenses"
        )
    if name:
        if attacks or defenses or called:
            raise InputError(
                "--attacks, --defenses and --name go with --dataset; a benchmark has its own: use "
                "--only"
            )
        grid = suite.load(name)
    else:
        grid = _own_grid(dataset, attacks, defenses, protocol, called)
    if compile and compile not in COMPILE:
        raise InputError(f"--compile must be one of {', '.join(COMPILE)}, not {compile!r}")
    if jobs and executor:
        raise InputError("give either --jobs or --executor")
    grid = grid.changed(
        scale=scale,
        epochs=epochs,
        model=_starting(start, model, grid),
        target=target,
        seeds=_numbers(seeds, int, "--seeds"),
        rates=_numbers(rates, float, "--rates"),
    )
    options = Options(
        out=to,
        data=data,
        weights=start,
        download=download,
        device=device,
        models=save_models,
        compile=compile,
        audit=audit or grid.audit,
        plugins=tuple(plugin),
    )
    _run(
        grid,
        only,
        options,
        jobs=jobs,
        executor=executor,
        shard=shard,
        track=track,
        dry_run=dry_run,
        own=not name,
    )


def _starting(file: Path | None, model: str | None, grid: Suite) -> str | None:
    """The network of ``--model`` and ``--weights``; what it takes of the file is said."""
    if file is None:
        return model
    from . import models, weights

    named = weights.named(file, model, grid.protocol.model)
    network = named or grid.protocol.model
    models.check(network)
    _say(f"{network.partition('@')[0]} starts from {file}: {models.check_start(network)}")
    return named


def _run(
    grid: Suite,
    only: str,
    options: Options,
    *,
    jobs: str = "",
    executor: str = "",
    shard: str = "",
    track: str = "",
    dry_run: bool = False,
    own: bool,
) -> None:
    """What ``run`` and ``defend`` have in common; a grid of one's ``own`` adds all its axes to what
    ran under its name before.
    """
    from . import runner

    folder = options.out / grid.name
    axes = suite.AXES if own else suite.RUNS
    runs: Any = registry.create("executors", executor) if executor else None
    cells = grid.cells(only)
    if shard:
        from .merge import share

        cells = share(cells, shard)
    plan = runner.plan(grid, cells, options, axes)
    _say(str(plan))
    if dry_run:
        _rehearse(plan)
        return
    tracker = None
    if track:
        from .tracking import tracker as tracking

        tracker = tracking(track, grid.name, folder)
    outcomes = runner.run(plan, jobs=_jobs(jobs, plan), executor=runs, console=err, track=tracker)
    _write(grid, folder, axes)
    failed = sum(outcome.record is None for outcome in outcomes)
    if failed:
        err.print(
            f"{failed} of {len(outcomes)} cells failed; the reasons lie beside the records as "
            ".failed; the same command tries them again",
            style="red",
        )
        raise typer.Exit(1)
    if not plan.todo:
        _say("nothing to run: every cell has its record")


def _rehearse(plan: Any) -> None:
    """Say which cells would run, for how long, and what cannot work."""
    from . import runner
    from .estimate import estimate

    said = ""
    try:
        runner.check(plan)
    except NoData as error:
        # which cells there are can be said without them
        said = f"not checked: {error}"
    if plan.todo:
        print("\n".join(one_line(str(plan.folder / cell.path)) for cell in plan.todo), flush=True)
    if plan.todo and not said:
        with bars(err, "timing") as told:
            reckoned = estimate(plan, lambda done, total: told("timing", "", done, total))
        said = str(reckoned)
    if said:
        _say(said)


def _jobs(text: str, plan: Any) -> int | None:
    """What ``--jobs`` asks for; ``auto`` is tried out with the first cell's network."""
    from . import beside, runner
    from .devices import cores
    from .lab import Lab

    if text != "auto":
        return int(text) if text else None
    most = min(len(runner.groups(plan.todo)), cores())
    if most <= 1:
        return 1
    lab = Lab(plan.todo[0], plan.options)
    train = lab.clean[0]
    shape = tuple(train.x.shape[1:])
    count, speeds = beside.best(lab.rules, shape, len(train.classes), plan.options.device, most)
    tried = ", ".join(f"{jobs}: {speed:,.0f}" for jobs, speed in speeds.items())
    _say(
        f"--jobs auto: {count} at a time (images/s of {lab.rules.model} together by trainings at a "
        f"time: {tried})"
    )
    return count


def _write(grid: Suite, folder: Path, axes: Sequence[str]) -> None:
    """The tables and the plot of all records that there are, of other runs' on these axes, too."""
    from . import plots, tables

    # or the tables of a run that ends now might be overwritten by those of one that began to read
    with locked(folder / ".state" / "tables"):
        grid = grid.joined(folder, axes)
        there = records.of_grid(grid, folder)
        if not there:
            return
        files = tables.write(there, grid, folder)
        files += plots.save(plots.bars(there, grid), folder / "plot")
    try:
        _summary(there, grid)
        if sys.stdout:
            sys.stdout.flush()
    # rich ends the process where a pipe is broken
    except (OSError, SystemExit):
        # the tables are written; who reads this has gone, or has no room
        sys.stdout = io.StringIO()
    _say("wrote " + ", ".join(map(str, files)))


def _own_grid(dataset: str, attacks: str, defenses: str, protocol: str, called: str = "") -> Suite:
    rules = named(protocol)
    if not attacks or not defenses:
        raise InputError(
            "a grid of your own needs --attacks and --defenses, e.g. --attacks badnets,blend "
            "--defenses none,cbd"
        )
    axes = [tuple(registry.split(text)) for text in (dataset, attacks, defenses)]
    if called in registry.modules("benchmarks"):
        raise InputError(f"--name {called}: there is a benchmark of that name; give another")
    name = "own" if protocol == "cbd" else f"own-{protocol}"
    return Suite(called or name, rules, axes[0], axes[1], axes[2])


def _summary(there: Sequence[records.Record], grid: Suite) -> None:
    """The means over seeds, on the screen."""
    from .frame import summary
    from .naming import rate

    shown = [metrics.get(key) for key in metrics.COUNTED]
    rows = summary(there, shown)
    # what all rows share is not repeated
    several = [len({cell[place] for cell in rows}) > 1 for place in range(2)]
    columns = [name for name, wanted in zip(("data set", "rate"), several, strict=True) if wanted]
    table = Table(
        *(Column(name, overflow="fold") for name in (*columns, "attack", "defense")),
        *(f"{metric.title} {metric.arrow}" for metric in shown),
        title=escape(f"{grid.name}, percent"),
        title_justify="left",
        box=None,
    )
    for (dataset, share, attack, defense), row in rows.items():
        where = zip((dataset, rate(share)), several, strict=True)
        names = [*(name for name, wanted in where if wanted), attack, defense]
        means = (replace(row[metric.key], count=1) for metric in shown)
        table.add_row(*map(escape, names), *map(str, means))
    out.print(table)


def _grid(name: str, to: Path, scale: float | None = None) -> tuple[Suite, Path]:
    """A suite, at a scale, and the folder of its results, which may be what was named."""
    if suite.is_results(str(to / name)) and name not in registry.modules("benchmarks"):
        # a grid of one's own, by the name that it was run under
        name = str(to / name)
    grid = suite.load(name).changed(scale=scale)
    folder = Path(name) if suite.is_results(name) else to / grid.name
    return grid.joined(folder), folder


def _chosen(text: str) -> list[metrics.Metric]:
    return [metrics.get(key.strip()) for key in text.split(",")]


@command(
    app,
    "bbx merge here/demo there/demo --to runs/demo",
)
def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="folders of results of one grid")
    ],
    to: Annotated[Path, typer.Option(help="the folder that then holds all; it may hold some")],
) -> None:
    """Join what several machines have run of one grid, and write its tables and plot."""
    from . import merge as merging

    grid, new = merging.merge(folders, to)
    done = sum((to / cell.path).exists() for cell in grid.cells())
    _say(f"{to}: {new} new records, {done} of {len(grid.cells())} cells")
    _write(grid, to, suite.AXES)


@command(
    app,
    "bbx status demo",
)
def status(
    name: Name,
    scale: Scale = None,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
    as_json: AsJson = False,
) -> None:
    """Which cells of a suite are done, run now, have failed or are still to run."""
    grid, folder = _grid(name, to, scale)
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
    app,
    "bbx table demo --format latex",
    "bbx table runs/demo --metrics ca,asr,der --highlight cbd",
)
def table(
    name: Name,
    form: Annotated[str, typer.Option("--format", help="latex, markdown or csv")] = "markdown",
    against: Annotated[
        str,
        typer.Option(help="reported: beside each number the published one, and the difference"),
    ] = "",
    shown: Metrics = COUNTED,
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
    scale: Scale = None,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Print a suite's table, from the records that there are."""
    from . import layout, tables

    style = layout.Style(_chosen(shown), marks, decimals, highlight, caption)
    if against not in ("", "reported"):
        raise InputError(f"--against must be reported, not {against!r}")
    grid, folder = _grid(name, to, scale)
    there = records.of_grid(grid, folder)
    text = tables.render(there, grid, form, bool(against), style)
    print(text, end="")


def _current(grid: Suite, folder: Path) -> list[records.Record]:
    """The records that methods may be judged by.

    Raises:
        InputError: there are none.
    """
    from . import gather

    there = records.of_grid(grid, folder)
    old = [name for kind in ("attack", "defense") for name in records.outdated(there, kind)]
    if old:
        _say(f"left out, made by earlier versions: {', '.join(old)}")
    kept = records.current(there)
    gather.check(kept, grid)
    return kept


@command(
    app,
    "bbx cite badnets cbd",
    "bbx cite runs/demo",
    name="cite",
)
def cite_(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="attacks and defenses, or a folder of results"),
    ] = None,
    plugin: Plugins = NO_FILES,
) -> None:
    """Print BibTeX of this software and of the papers of what you ran."""
    from .cite import cite

    grids = [suite.load(name) for name in names or [] if suite.is_results(name)]
    asked = [name for name in names or [] if not suite.is_results(name)]
    attacks = [name for grid in grids for name in grid.attacks]
    defenses = [name for grid in grids for name in grid.defenses]
    print(cite(asked, attacks, defenses), end="")


@command(
    app,
    "bbx rank demo",
    name="rank",
)
def rank_(
    name: Name,
    form: Annotated[str, typer.Option("--format", help="markdown or latex")] = "markdown",
    scale: Scale = None,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Who leads over all attacks, and how sure that is."""
    from . import ranking

    grid, folder = _grid(name, to, scale)
    there = _current(grid, folder)
    print(ranking.render(ranking.rank(there, grid), grid, form), end="")


@command(
    app,
    "bbx submit demo --to demo.zip",
)
def submit(
    name: Name,
    file: Annotated[Path, typer.Option("--to", help="the .zip file to write")],
    scale: Scale = None,
    out_: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Pack a suite's records into one file that others can check."""
    from . import submission

    grid, folder = _grid(name, out_, scale)
    count = submission.pack(grid, folder, file)
    _say(f"wrote {file}: {count} records of {grid.name}")


@command(
    app,
    "bbx verify demo.zip --rerun 2 --data DIR",
    "bbx verify demo.zip --keep",
)
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="what bbx submit wrote")],
    rerun: Annotated[
        int, typer.Option(min=0, help="how many cells to run again, chosen at random")
    ] = 0,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="put what is sound among the results in --out; bbx report says what was checked",
        ),
    ] = False,
    to: Out = Path("runs"),
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    plugin: Plugins = NO_FILES,
    as_json: AsJson = False,
) -> None:
    """Recompute what a submission says, and run some of its cells again."""
    from . import submission, verified

    options = Options(out=to, data=data, download=download, device=device, plugins=tuple(plugin))
    checked = submission.verify(file, options, rerun, err, keep=keep)
    if as_json:
        print(json.dumps(asdict(checked), indent=1))
    else:
        for text in checked.notes:
            _say(f"note: {text}")
        for text in checked.problems:
            _say(f"wrong: {text}", out)
        _say(str(checked), out)
        if rerun and not checked.problems:
            _say(f"run again within {verified.TOLERANCE:g} points", out)
    if checked.problems:
        raise typer.Exit(1)
    if keep:
        folder = to / checked.benchmark
        _say(f"kept in {folder}: bbx report {folder}")


@command(
    app,
    "bbx compare demo cbd none",
    "bbx compare runs/demo --baseline none",
    name="compare",
)
def compare_(
    name: Name,
    first: Annotated[
        str, typer.Argument(metavar="A", help="a defense, with its options as in the table")
    ] = "",
    second: Annotated[str, typer.Argument(metavar="B", help="the defense to compare with")] = "",
    baseline: Annotated[
        str, typer.Option(help="in place of A and B: every other defense against this one")
    ] = "",
    form: Annotated[str, typer.Option("--format", help="markdown, latex or json")] = "markdown",
    scale: Scale = None,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Is A better than B, and how sure is that: paired by image and by seed, attack by attack."""
    from . import compare

    if bool(baseline) == bool(first) or bool(first) != bool(second):
        raise InputError("give two defenses, or --baseline and one")
    grid, folder = _grid(name, to, scale)
    there = _current(grid, folder)
    pairs = [(first, second)] if first else compare.against(there, grid, baseline)
    found = [compare.compare(there, grid, a, b) for a, b in pairs]
    print(compare.render(found, grid, form), end="")


@command(
    app,
    "bbx report demo",
    "bbx report --index runs",
    name="report",
)
def report_(
    name: Annotated[str, typer.Argument(help=NAME)] = "",
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="in place of a name: all suites of a folder, and a page that lists them",
        ),
    ] = None,
    scale: Scale = None,
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Write a suite's records as one HTML page: ranking, grid, cells, table, plots, triggers."""
    from . import report

    if bool(name) == bool(index):
        raise InputError("give either a suite, or --index and a folder")
    if index is None:
        grid, folder = _grid(name, to, scale)
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
    app,
    "bbx plot demo",
    "bbx plot heatmap runs/demo --width column",
    "bbx plot gallery attacks --data DIR",
)
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
    width: Annotated[
        str,
        typer.Option(
            metavar="column|text|INCHES",
            help="of a paper: a column (3.3 in) or the text (6.9 in); if not given, as wide as it "
            "comes",
        ),
    ] = "",
    shown: Metrics = COUNTED,
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
    formats = form.split(",")
    for one in formats:
        if one not in FORMATS:
            raise InputError(f"format must be pdf, png or svg, not {one!r}")
    grid, folder = _grid(name, to, scale)
    from . import datasets, pictures, plots

    page = plots.inches(width)
    if kind in plots.DRAWINGS:
        there = records.of_grid(grid, folder)
        drawn = plots.DRAWINGS[kind](there, grid, _chosen(shown), page=page)
    elif kind == "tsne":
        names = {datasets.NAMES.get(registry.parse(text)[0]) for text in grid.datasets}
        own = next(iter(names)) if len(names) == 1 else None
        drawn = pictures.tsne(pictures.panels(grid, folder, only), own or (), page)
    else:
        options = Options(out=folder.parent, data=data, device=device, plugins=tuple(plugin))
        drawn = pictures.gallery(_specimens(grid, only, options), page=page)
    for file in plots.save(drawn, folder / ("plot" if kind == "bars" else kind), formats):
        print(file)


def _specimens(grid: Suite, only: str, options: Options) -> list[tuple[str, Any, Any]]:
    """Images before and after each attack of a suite."""
    from .lab import Lab

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


@command(
    app,
    "bbx poison --attack wanet --dataset cifar10 --data DIR --to poisoned",
    "bbx poison --attack 'badnets[size=5]' --dataset digits --to poisoned.npz",
)
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
            help=f"target label, pool and reserve are its: {PROTOCOL}; if not given, "
            "backdoorbench for its format, else cbd"
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
    start: Weights = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    out_: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Write a poisoned data set: PNG folders with a manifest, an .npz file, or a record of
    BackdoorBench with its victim.
    """
    theirs = form == "backdoorbench"
    protocol = protocol or ("backdoorbench" if theirs else "cbd")
    grid = _own_grid(dataset, attack, "none", protocol)
    grid = grid.changed(
        epochs=epochs,
        model=_starting(start, model, grid),
        target=target,
        seeds=(seed,),
        rates=(rate,),
    )
    cells = grid.cells()
    if len(cells) > 1:
        hint = "; a path with commas goes in quotes: folder:'a,b'" if "," in dataset else ""
        raise InputError(f"give one attack and one data set{hint}")
    options = Options(
        out=out_,
        data=data,
        weights=start,
        download=download,
        device=device,
        plugins=tuple(plugin),
    )
    from . import export
    from .toolbox import commands

    with bars(err) as report:
        progress = partial(report, attack)
        if theirs:
            counts = commands.poison(cells[0], options, to, progress)
        else:
            form = form or ("npz" if to.suffix == ".npz" else "png")
            counts = export.poisoned(cells[0], options, to, form, progress)
    _say(f"wrote {to}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


@command(
    app,
    "bbx export demo --to networks",
    "bbx export demo --to networks --format onnx --only badnets",
    name="export",
)
def export_(
    name: Name,
    to: Annotated[Path, typer.Option("--to", help="the folder to write, a folder in it a network")],
    form: Annotated[str, typer.Option("--format", help="safetensors or onnx")] = "safetensors",
    only: Only = "",
    side: Annotated[
        int, typer.Option(min=1, help="of the images that a network in ONNX takes, in pixels")
    ] = 32,
    scale: Scale = None,
    out_: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Hand networks on that bbx run --save-models kept: each with its record and a model card."""
    from . import cards

    if form not in cards.FORMATS:
        raise InputError(f"--format must be {' or '.join(cards.FORMATS)}, not {form!r}")
    grid, folder = _grid(name, out_, scale)
    with bars(err, "networks") as told:
        written, left = cards.export(
            grid, folder, to, form, only, side, lambda n, total: told("networks", "", n, total)
        )
    for why in left:
        _say(f"left out: {why}")
    for one in written:
        print(one)
    if not written:
        raise typer.Exit(1)


@command(
    app,
    "bbx defend record/badnet_0_1 --defense cbd,mcci --data DIR",
)
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
    protocol: Annotated[str, typer.Option(help=f"how to train: {PROTOCOL}")] = "backdoorbench",
    epochs: Epochs = None,
    seeds: Seeds = "0",
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
    from .toolbox import commands

    grid = commands.defending(
        folder,
        tuple(registry.split(defense)),
        dataset,
        named(protocol),
        _numbers(seeds, int, "--seeds"),
    ).changed(epochs=epochs)
    options = Options(
        out=to,
        data=data,
        download=download,
        device=device,
        models=True,
        plugins=tuple(plugin),
    )
    try:
        _run(grid, "", options, jobs=jobs, own=True)
    finally:
        for file in commands.results(grid, grid.cells(), options):
            _say(f"wrote {file}")


@command(
    app,
    "bbx link ~/BackdoorBench",
    "bbx link ~/BackdoorBench --undo",
)
def link(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="a checkout of BackdoorBench")],
    undo: Annotated[bool, typer.Option("--undo", help="take away what was written")] = False,
) -> None:
    """Put our attacks and defenses among BackdoorBench's scripts: python ./defense/cbd.py works
    there as its own.
    """
    from .toolbox import link as linking

    files = linking.unlink(home) if undo else linking.link(home)
    scripts = ", ".join(f"{f.parent.name}/{f.stem}" for f in files if f.suffix == ".py")
    _say(f"{'took away' if undo else 'wrote'} {len(files)} files in {home}: {scripts or 'none'}")


@command(
    app,
    "bbx tune cbd --dataset cifar10 --data DIR --trials 8",
    "bbx tune mcci --dataset digits --grid lr=0.1,1.0 --folds 3",
    name="tune",
)
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
    ] = NO_TEXTS,
    folds: Annotated[
        int, typer.Option(help="parts that the poisoned training set is split into")
    ] = 5,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="the budget, equal for all defenses if a comparison is to be fair: at most so "
            "many combinations, drawn at random",
        ),
    ] = None,
    protocol: Protocols = "cbd",
    rate: Annotated[float, typer.Option(help="poisoning rate")] = 0.1,
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    epochs: Epochs = None,
    model: Model = None,
    start: Weights = None,
    data: Data = None,
    download: Download = False,
    device: Device = "auto",
    to: Out = Path("runs"),
    plugin: Plugins = NO_FILES,
) -> None:
    """Choose a defense's options by cross-validation on the poisoned training set."""
    from . import tune

    names = tune.choices(defense, _axes(grid), trials, seed)
    own = _own_grid(dataset, attack, "none", protocol)
    own = own.changed(
        epochs=epochs, model=_starting(start, model, own), seeds=(seed,), rates=(rate,)
    )
    options = Options(
        out=to,
        data=data,
        weights=start,
        download=download,
        device=device,
        plugins=tuple(plugin),
    )
    results = tune.cross_validate(own.cells()[0], names, folds, options, err)
    table = Table(
        Column("defense", overflow="fold"),
        "accuracy on held-out folds, %",
        "lowest",
        "highest",
        box=None,
    )
    for name, accuracy in results.items():
        numbers = (mean(accuracy), min(accuracy), max(accuracy))
        table.add_row(escape(name), *(f"{100 * number:.2f}" for number in numbers))
    out.print(table)
    print(tune.best(results))


@command(
    app,
    "bbx vqa --to vqa",
    "bbx vqa --model Salesforce/blip-vqa-base --triples DIR --lr 2e-5 --batch-size 16 --to vqa",
)
def vqa(
    to: Annotated[Path, typer.Option(help="folder of the record, the table and the picture")],
    model: Annotated[
        str, typer.Option(help="tiny, or a BLIP of transformers by name or folder")
    ] = "tiny",
    triples: Annotated[
        str, typer.Option(help="icons, drawn here, or the folder of IconQA's files")
    ] = "icons",
    attack: Annotated[str, typer.Option(help="puts the trigger into images")] = "badnets",
    rate: Annotated[float, typer.Option(help="poisoning rate")] = 0.1,
    train: Annotated[int, typer.Option(help="how many training triples")] = 6000,
    test: Annotated[int, typer.Option(help="how many test triples")] = 1000,
    images: Annotated[int, typer.Option(help="clean images for MCCI's mean spectrum")] = 100,
    epochs: Annotated[int, typer.Option(help="passes over the training triples")] = 20,
    batch_size: Annotated[int, typer.Option(help="triples a step")] = 64,
    lr: Annotated[float, typer.Option(help="AdamW's highest learning rate")] = 1e-3,
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    device: Device = "auto",
    plugin: Plugins = NO_FILES,
) -> None:
    """Backdoors in visual question answering: BLIP without defense and with MCCI (its table 2)."""
    from .vqa.experiment import Setting, answered

    setting = Setting(
        model=model,
        data=triples,
        train=train,
        test=test,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        rate=rate,
        images=images,
        attack=attack,
        seed=seed,
    )
    with bars(err) as report:
        text, files = answered(setting, to, device, partial(report, "vqa"))
    print(text, end="")
    _say("wrote " + ", ".join(map(str, files)))


def _axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``t1=3,5,8`` -> {"t1": [3, 5, 8]}."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise InputError(
                f"--grid must be an option and its values, like t1=3,5,8, not {text!r}"
            )
        axes[key] = [registry.parse(f"x[v={value}]")[1]["v"] for value in registry.split(values)]
    return axes


@command(app, "bbx check my_defense.py")
def check(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help=".py files with an attack, a defense, an executor, a SUITE or a METRIC",
        ),
    ],
) -> None:
    """Test your own methods by the contract that ours keep: options, chance, labels that must not
    be seen, going on after a kill. It runs their code.
    """
    import tempfile

    from . import contract

    found = [pair for file in files for pair in registry.add_file(file)]
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, name in found:
            for what, checked in contract.checks(kind, name, Path(folder)):
                why = contract.outcome(checked)
                broken += bool(why)
                _say(
                    f"{'broken' if why else 'ok':6} {name}: {what}{f': {why}' if why else ''}", out
                )
    if broken:
        raise typer.Exit(1)


NOT_REPLAYED = "run one by one: bbx doctor --gpu tries out whether they may be replayed"


def _try_gpu() -> None:
    """Try out the replaying of steps and keep what came of it."""
    from . import graphs, trial
    from .devices import pick_device

    device = pick_device()
    if device.type != "cuda":
        raise InputError("--gpu: there is no GPU here that PyTorch can use")
    passed = trial.replays(device, lambda one: _say(str(one), out))
    file = graphs.keep_word(device, passed)
    _say(f"{'kept' if passed else 'steps will be run one by one; kept'} in {file}", out)
    if not passed:
        raise typer.Exit(1)


@command(
    app,
    "bbx doctor",
    "bbx doctor --gpu",
)
def doctor(
    gpu: Annotated[
        bool,
        typer.Option(
            help="try out whether trainings on the GPU may replay their steps as CUDA graphs; "
            "if all is well, later runs do"
        ),
    ] = False,
) -> None:
    """What this installation can do: versions, devices, precision, threads, and what is broken."""
    import torch

    from . import graphs
    from .devices import has_bf16, pick_device
    from .surroundings import surroundings

    if gpu:
        _try_gpu()

    device = pick_device()
    facts = surroundings(device)
    rows = {"backdoorbench_ext": f"{__version__}, commit {facts['commit'] or 'unknown'}"}
    rows |= facts["versions"]
    rows["device"] = facts["device"]
    rows["bf16"] = "computed by the device" if has_bf16(device) else "no: float32"
    rows["threads"] = str(facts["threads"])
    if device.type == "cuda":
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(device))
        rows["GPU memory"] = f"{free:.1f} of {total:.1f} GiB free"
        rows["steps"] = "replayed as CUDA graphs" if graphs.allowed(device) else NOT_REPLAYED
    for label, value in rows.items():
        _say(f"{label:18} {value}", out)
    broken = catalogue.check()
    for line in broken or ["all import"]:
        _say(f"{'broken' if broken else 'methods':18} {line}", out)
    if broken:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


class Patient:
    """A stream of progress: a run goes on when nobody can read it any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def _any_terminal() -> Iterator[None]:
    """An arrow that a terminal's encoding lacks is written out; a stream may be closed, or full."""
    errors = sys.stderr
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if errors:
        sys.stderr = cast(TextIO, Patient(errors))
    try:
        yield
    finally:
        sys.stderr = errors


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2, a signal one line and
    128 plus its number.
    """
    with _any_terminal(), heeding():
        try:
            app()
        except InputError as error:
            _end(2, str(error))
        except Stopped as stopped:
            name = signal.Signals(stopped.args[0]).name
            _end(128 + stopped.args[0], f"stopped by {name}; the same command goes on from here")
        except BrokenPipeError:
            # nobody reads on, which Python would complain of once more at its end
            sys.stdout = io.StringIO()
            sys.exit(1)
        except MemoryError:
            _end(1, "out of memory")
        except OSError as error:
            _end(1, reason(error))


def _end(code: int, why: str) -> NoReturn:
    _say(f"bbx: {why}")
    sys.exit(code)


if __name__ == "__main__":
    main()

"""What trains: run, merge of what ran elsewhere, tune, defend, vqa."""

# What a command alone needs is imported in it: PyTorch takes seconds, a typing error should not.
from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from .. import metrics, records, registry, suite
from ..errors import InputError, NoData, one_line
from ..files import locked
from ..options import Options
from ..progress import bars
from ..protocols import FAST, named
from ..suite import Suite
from . import args
from .shared import command, err, numbers, out, own_grid, say, starting

# the grid whose methods have lengths for few epochs
SHORT = "fast_cifar10"
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@command(
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
    protocol: Annotated[str, typer.Option(help=f"its protocol: {args.PROTOCOL}")] = "cbd",
    called: Annotated[
        str, typer.Option("--name", help="its name, and that of its folder in --out")
    ] = "",
    rates: Annotated[str, typer.Option(help="poisoning rates, e.g. 0.05,0.1")] = "",
    seeds: args.Seeds = "",
    target: Annotated[
        int | None, typer.Option(help="another target label; makes cells of their own")
    ] = None,
    only: args.Only = "",
    scale: args.Scale = None,
    epochs: args.Epochs = None,
    model: args.Model = None,
    start: args.Weights = None,
    device: args.Device = "auto",
    jobs: args.Jobs = "",
    executor: Annotated[
        str, typer.Option(help="what runs the cells, in place of --jobs: bbx list executors")
    ] = "",
    compile: Annotated[
        str,
        typer.Option(help=f"let torch.compile work on plain training: {', '.join(COMPILE)}"),
    ] = "",
    data: args.Data = None,
    download: args.Download = False,
    to: args.Out = Path("runs"),
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
    plugin: args.Plugins = args.NO_FILES,
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
        grid = own_grid(dataset, attacks, defenses, protocol, called)
        _note_lengths(grid.protocol.name, grid.defenses)
    if compile and compile not in COMPILE:
        raise InputError(f"--compile must be one of {', '.join(COMPILE)}, not {compile!r}")
    if jobs and executor:
        raise InputError("give either --jobs or --executor")
    grid = grid.changed(
        scale=scale,
        epochs=epochs,
        model=starting(start, model, grid),
        target=target,
        seeds=numbers(seeds, int, "--seeds"),
        rates=numbers(rates, float, "--rates"),
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


@command(
    "bbx merge here/demo there/demo --to runs/demo",
)
def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="folders of results of one grid")
    ],
    to: Annotated[Path, typer.Option(help="the folder that then holds all; it may hold some")],
) -> None:
    """Join what several machines have run of one grid, and write its tables and plot."""
    from .. import merge as merging

    grid, new = merging.merge(folders, to)
    # records are enough: a plugin of theirs may not be at hand
    done = sum((to / cell.path).exists() for cell in grid.known())
    say(f"{to}: {new} new records, {done} of {len(grid.unresolved())} cells")
    _write(grid, to, suite.AXES)


@command(
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
    protocol: Annotated[str, typer.Option(help=f"how to train: {args.PROTOCOL}")] = "backdoorbench",
    epochs: args.Epochs = None,
    seeds: args.Seeds = "0",
    device: args.Device = "auto",
    jobs: args.Jobs = "",
    data: args.Data = None,
    download: args.Download = False,
    to: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Defend a record of BackdoorBench: its poisoned images, its network as the victim; with
    defense_result.pt where it knows the network.
    """
    from ..toolbox import commands

    grid = commands.defending(
        folder,
        tuple(registry.split(defense)),
        dataset,
        named(protocol),
        numbers(seeds, int, "--seeds"),
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
            say(f"wrote {file}")


@command(
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
    ] = args.NO_TEXTS,
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
    protocol: args.Protocols = "cbd",
    rate: Annotated[float, typer.Option(help="poisoning rate")] = 0.1,
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    epochs: args.Epochs = None,
    model: args.Model = None,
    start: args.Weights = None,
    data: args.Data = None,
    download: args.Download = False,
    device: args.Device = "auto",
    to: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Choose a defense's options by cross-validation on the poisoned training set."""
    from .. import tune

    names = tune.choices(defense, _axes(grid), trials, seed)
    own = own_grid(dataset, attack, "none", protocol)
    # the others differ in values alone
    _note_lengths(own.protocol.name, names[:1])
    own = own.changed(
        epochs=epochs, model=starting(start, model, own), seeds=(seed,), rates=(rate,)
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
    device: args.Device = "auto",
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Backdoors in visual question answering: BLIP without defense and with MCCI (its table 2)."""
    from ..vqa.experiment import Setting, answered

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
    say("wrote " + ", ".join(map(str, files)))


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
    from .. import runner

    folder = options.out / grid.name
    axes = suite.AXES if own else suite.RUNS
    runs: Any = registry.create("executors", executor) if executor else None
    cells = grid.cells(only)
    if shard:
        from ..merge import share

        cells = share(cells, shard)
    plan = runner.plan(grid, cells, options, axes)
    say(str(plan))
    if dry_run:
        _rehearse(plan)
        return
    tracker = None
    if track:
        from ..tracking import tracker as tracking

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
        say("nothing to run: every cell has its record")


def _note_lengths(protocol: str, defenses: Sequence[str]) -> None:
    """Say which defenses have lengths of a hundred epochs under ``fast``, which has few: those that
    leave to their own choice what the benchmark under it gives them.
    """
    if protocol != FAST.name:
        return
    said: dict[str, set[str]] = {}
    for text in suite.load(SHORT).defenses:
        name, options = registry.parse(text)
        said[name] = said.get(name, set()) | registry.lengths("defenses", name) & set(options)
    asked = {text: registry.parse(text) for text in defenses}
    long = [text for text, (name, options) in asked.items() if said.get(name, set()) - set(options)]
    if long:
        say(
            f"note: {', '.join(long)}: lengths of a hundred epochs, and {FAST.name} has "
            f"{FAST.recipe.epochs}: `bbx run {SHORT} --dry-run` names them in proportion"
        )


def _rehearse(plan: Any) -> None:
    """Say which cells would run, for how long, and what cannot work."""
    from .. import runner
    from ..estimate import estimate

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
        say(said)


def _jobs(text: str, plan: Any) -> int | None:
    """What ``--jobs`` asks for; ``auto`` is tried out with the first cell's network."""
    from .. import beside, runner
    from ..devices import cores
    from ..lab import Lab

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
    say(
        f"--jobs auto: {count} at a time (images/s of {lab.rules.model} together by trainings at a "
        f"time: {tried})"
    )
    return count


def _write(grid: Suite, folder: Path, axes: Sequence[str]) -> None:
    """The tables and the plot of all records that there are, of other runs' on these axes, too."""
    from .. import plots, tables

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
    say("wrote " + ", ".join(map(str, files)))


def _summary(there: Sequence[records.Record], grid: Suite) -> None:
    """The means over seeds, on the screen."""
    from ..frame import summary
    from ..naming import rate

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

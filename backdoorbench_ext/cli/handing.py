"""What is handed on: poisoned images, networks, records, our methods to BackdoorBench."""

# What a command alone needs is imported in it: PyTorch takes seconds, a typing error should not.
from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..options import Options
from ..progress import bars
from . import args
from .shared import command, err, grid_of, out, own_grid, say, starting


@command(
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
            help=f"target label, pool and reserve are its: {args.PROTOCOL}; if not given, "
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
    epochs: args.Epochs = None,
    model: args.Model = None,
    start: args.Weights = None,
    data: args.Data = None,
    download: args.Download = False,
    device: args.Device = "auto",
    out_: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Write a poisoned data set: PNG folders with a manifest, an .npz file, or a record of
    BackdoorBench with its victim.
    """
    theirs = form == "backdoorbench"
    protocol = protocol or ("backdoorbench" if theirs else "cbd")
    grid = own_grid(dataset, attack, "none", protocol)
    grid = grid.changed(
        epochs=epochs,
        model=starting(start, model, grid),
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
    from .. import export
    from ..toolbox import commands

    with bars(err) as report:
        progress = partial(report, attack)
        if theirs:
            counts = commands.poison(cells[0], options, to, progress)
        else:
            form = form or ("npz" if to.suffix == ".npz" else "png")
            counts = export.poisoned(cells[0], options, to, form, progress)
    say(f"wrote {to}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


@command(
    "bbx export demo --to networks",
    "bbx export demo --to networks --format onnx --only badnets",
    name="export",
)
def export_(
    name: args.Name,
    to: Annotated[Path, typer.Option("--to", help="the folder to write, a folder in it a network")],
    form: Annotated[str, typer.Option("--format", help="safetensors or onnx")] = "safetensors",
    only: args.Only = "",
    side: Annotated[
        int, typer.Option(min=1, help="of the images that a network in ONNX takes, in pixels")
    ] = 32,
    scale: args.Scale = None,
    out_: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Hand networks on that bbx run --save-models kept: each with its record and a model card."""
    from .. import cards

    if form not in cards.FORMATS:
        raise InputError(f"--format must be {' or '.join(cards.FORMATS)}, not {form!r}")
    grid, folder = grid_of(name, out_, scale)
    with bars(err, "networks") as told:
        written, left = cards.export(
            grid, folder, to, form, only, side, lambda n, total: told("networks", "", n, total)
        )
    for why in left:
        say(f"left out: {why}")
    for one in written:
        print(one)
    if not written:
        raise typer.Exit(1)


@command(
    "bbx submit demo --to demo.zip",
)
def submit(
    name: args.Name,
    file: Annotated[Path, typer.Option("--to", help="the .zip file to write")],
    scale: args.Scale = None,
    out_: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """Pack a suite's records into one file that others can check."""
    from .. import submission

    grid, folder = grid_of(name, out_, scale)
    count = submission.pack(grid, folder, file)
    say(f"wrote {file}: {count} records of {grid.name}")


@command(
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
    to: args.Out = Path("runs"),
    data: args.Data = None,
    download: args.Download = False,
    device: args.Device = "auto",
    plugin: args.Plugins = args.NO_FILES,
    as_json: args.AsJson = False,
) -> None:
    """Recompute what a submission says, and run some of its cells again."""
    from .. import submission, verified

    options = Options(out=to, data=data, download=download, device=device, plugins=tuple(plugin))
    checked = submission.verify(file, options, rerun, err, keep=keep)
    if as_json:
        print(json.dumps(asdict(checked), indent=1))
    else:
        for text in checked.notes:
            say(f"note: {text}")
        for text in checked.problems:
            say(f"wrong: {text}", out)
        say(str(checked), out)
        if rerun and not checked.problems:
            say(f"run again within {verified.TOLERANCE:g} points", out)
    if checked.problems:
        raise typer.Exit(1)
    if keep:
        folder = to / checked.benchmark
        say(f"kept in {folder}: bbx report {folder}")


@command(
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
    from ..toolbox import link as linking

    files = linking.unlink(home) if undo else linking.link(home)
    scripts = ", ".join(f"{f.parent.name}/{f.stem}" for f in files if f.suffix == ".py")
    say(f"{'took away' if undo else 'wrote'} {len(files)} files in {home}: {scripts or 'none'}")

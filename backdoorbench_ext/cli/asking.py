"""What there is, what it is, and whether it works: list, show, check, doctor."""

# What a command alone needs is imported in it: PyTorch takes seconds, a typing error should not.
from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .. import __version__, catalogue, registry
from ..errors import InputError, nearest
from ..protocols import named
from . import args
from .shared import command, out, say


@command(
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
    to: args.Out = Path("runs"),
    plugin: args.Plugins = args.NO_FILES,
    as_json: args.AsJson = False,
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
    protocol: Annotated[str, typer.Option(help=f"of --cost: {args.PROTOCOL}")] = "cbd",
    device: args.Device = "auto",
    plugin: args.Plugins = args.NO_FILES,
) -> None:
    """A method's paper, options, needs and cost; a benchmark's grid and protocol."""
    from .. import showing

    rules = named(protocol)
    if measure:
        showing.cost(out, name, rules, device)
    else:
        showing.show(out, name)


@command("bbx check my_defense.py")
def check(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help=".py files with an attack, a defense, an executor, a SUITE, a METRIC or a network",
        ),
    ],
) -> None:
    """Test your own methods by the contract that ours keep: options, chance, labels that must not
    be seen, going on after a kill. It runs their code.
    """
    import tempfile

    from .. import contract

    found = [pair for file in files for pair in registry.add_file(file)]
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, name in found:
            for what, checked in contract.checks(kind, name, Path(folder)):
                why = contract.outcome(checked)
                broken += bool(why)
                say(f"{'broken' if why else 'ok':6} {name}: {what}{f': {why}' if why else ''}", out)
    if broken:
        raise typer.Exit(1)


NOT_REPLAYED = "run one by one: bbx doctor --gpu tries out whether they may be replayed"


@command(
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

    from .. import graphs
    from ..devices import has_bf16, pick_device
    from ..surroundings import surroundings

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
        say(f"{label:18} {value}", out)
    broken = catalogue.check()
    for line in broken or ["all import"]:
        say(f"{'broken' if broken else 'methods':18} {line}", out)
    if broken:
        raise typer.Exit(1)


def _try_gpu() -> None:
    """Try out the replaying of steps and keep what came of it."""
    from .. import graphs, trial
    from ..devices import pick_device

    device = pick_device()
    if device.type != "cuda":
        raise InputError("--gpu: there is no GPU here that PyTorch can use")
    passed = trial.replays(device, lambda one: say(str(one), out))
    file = graphs.keep_word(device, passed)
    say(f"{'kept' if passed else 'steps will be run one by one; kept'} in {file}", out)
    if not passed:
        raise typer.Exit(1)

"""What ``bbx poison --format backdoorbench`` and ``bbx defend`` do."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .. import models, registry
from ..engine import Progress
from ..errors import InputError
from ..files import write_text
from ..images import Poisoned
from ..lab import Lab
from ..models import Net
from ..options import Options
from ..protocols import Protocol
from ..suite import Cell, Suite, file_name
from ..work import counts
from . import record


def poison(
    cell: Cell, options: Options, to: Path, progress: Progress | None = None
) -> dict[str, int]:
    """Write what a cell trains on as a record of BackdoorBench, with the network that No Defense
    gives; how many images of each part.

    Its training set has the length and the order of CIFAR-10's own files, which BackdoorBench opens
    again; the clean reserve is in it, as clean images, and ``reserve.txt`` tells their places, for
    ``--index``.

    Raises:
        InputError: another data set, an unknown network, a place where BackdoorBench would not find
            it, or as ``Lab.check``.
    """
    record.check_place(to)
    rules = cell.rules
    record.their_model(rules.model)
    if cell.dataset != "cifar10":
        raise InputError(
            "BackdoorBench opens its clean data itself: only the whole of cifar10 is known to "
            f"have the same order there, not {cell.dataset}"
        )
    lab = Lab(cell, options, progress)
    lab.check()
    train, test = lab.clean
    goal = lab.attack.goal(test.y, rules.target, len(test.classes))
    counted = (goal != test.y).nonzero().flatten()
    engine = lab.engine()
    victim = engine.victim()
    sets = {
        "train": (whole(lab), torch.arange(len(train)), len(train)),
        "test": (lab.triggered.to("cpu"), counted, len(test)),
    }
    reserve = lab.held.nonzero().flatten().tolist()
    metrics = counts(engine.measure(victim, lab.test, lab.triggered))
    info = {
        "attack": cell.attack,
        "attack_target": rules.target,
        "pratio": cell.rate,
        "dataset": cell.dataset,
        "model": record.their_model(rules.model),
        "epochs": rules.recipe.epochs,
        "random_seed": cell.seed,
        "save_path": to.as_posix(),
    }
    with record.written(to, cell.dataset, rules.model, victim, sets) as part:
        write_text(part / "reserve.txt", "".join(f"{place}\n" for place in reserve))
        write_text(part / "attack_df.csv", table(metrics, rules.recipe.epochs))
        record.save(part / "info.pickle", info)
    return {
        "train": len(train),
        "reserve": len(reserve),
        "poisoned": int(lab.poisoned.mask.sum()),
        "triggered": len(lab.triggered),
    }


def whole(lab: Lab) -> Poisoned:
    """The poisoned training set of a cell with its clean reserve, in the order of the data set."""
    train = lab.clean[0]
    poisoned = lab.poisoned.to("cpu")
    nobody = torch.zeros_like(lab.held)
    tensors = {
        "x": train.x.clone(),
        "y": train.y.clone(),
        "mask": nobody,
        "cover": nobody.clone(),
    }
    for name, tensor in tensors.items():
        tensor[~lab.held] = getattr(poisoned, name)
    return Poisoned(**tensors, classes=train.classes, true=train.y)


def table(metrics: Mapping[str, Sequence[int]], epochs: int) -> str:
    """CA, ASR and ARR as BackdoorBench's CSV names them: fractions, one row for the last epoch."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("", "epoch", "test_acc", "test_asr", "test_ra"))
    shares = [metrics[name][0] / metrics[name][1] for name in ("ca", "asr", "arr")]
    writer.writerow((epochs - 1, epochs - 1, *shares))
    return text.getvalue()


def defending(
    folder: Path,
    defenses: tuple[str, ...],
    dataset: str,
    protocol: Protocol,
    seeds: tuple[int, ...],
    index: str = "",
) -> Suite:
    """The suite of a record: its data set, rate and target, and its network, under a protocol. A
    record without a training set has the rate 0, and suits defenses that start from the victim.
    ``index`` is a file of the places of its clean images, as ``reserve.txt`` beside it.

    Raises:
        InputError: as ``record.read``; no network here that is like its.
    """
    source = record.read(folder)
    model = record.our_model(source.model_name)
    models.check(model)
    # before any memory is asked for
    source.fit_to(models.shell(model, source.classes))
    target = source.targets[0] if len(source.targets) == 1 else protocol.target
    known = {
        name: {**fields, **({"model": model} if "model" in fields else {})}
        for name, fields in protocol.overrides.items()
    }
    if dataset.partition("[")[0] not in known and source.dataset in known:
        # the same images by another name keep the normalisation
        known[dataset.partition("[")[0]] = known[source.dataset]
    rules = replace(protocol, model=model, target=target, overrides=known)
    name = f"defend-{file_name(folder.resolve().name)}"
    return Suite(
        name,
        rules,
        (dataset or source.dataset,),
        (registry.join(f"record:{folder}", {"index": index} if index else {}),),
        defenses,
        rates=(source.rate,),
        seeds=seeds,
    )


def results(suite: Suite, cells: list[Cell], options: Options) -> list[Path]:
    """Write ``defense_result.pt`` beside the record of every cell whose network BackdoorBench
    knows; the files.
    """
    written = []
    for cell in cells:
        file = (options.out / suite.name / cell.path).with_suffix(".safetensors")
        network = _network(file) if file.exists() else None
        if network is not None:
            target = file.with_name(f"{file.stem}-defense_result.pt")
            record.save(target, record.model_state(network[1], network[0], outputs(network[0])))
            written.append(target)
    return written


def _network(file: Path) -> tuple[Net, str] | None:
    try:
        return models.unpack(file.read_bytes())
    except InputError as error:
        words = "delete its record to have it made anew"
        raise InputError(f"{file}: {error}; {words}") from error


def outputs(net: Net) -> int:
    return int(net.backbone.get_classifier().out_features)

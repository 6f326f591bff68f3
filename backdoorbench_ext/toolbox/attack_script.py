"""Our attacks as BackdoorBench's attack scripts: ``python -m
backdoorbench_ext.toolbox.attack_script dynamic --pratio 0.1 --save_folder_name dynamic_0_1``, run
from its root folder.

Written is ``record/NAME``, as by ``bbx poison --format backdoorbench``: the poisoned set, the
victim trained on it, and ``reserve.txt`` for its defenses' ``--index``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import registry
from ..errors import InputError, nearest
from ..options import Options
from ..progress import bars
from ..suite import Cell, Suite
from . import commands, record
from .interface import (
    TRAINING,
    UNUSED,
    add_flags,
    data_folder,
    device_of,
    own_flags,
    rules_of,
    told,
    yaml_values,
)

FLAGS: dict[str, Any] = TRAINING | {
    "save_folder_name": str,
    "pratio": float,
    "attack_target": int,
    "attack_label_trans": str,
    "bd_yaml_path": str,
}
LABELS = {"all2one": "all-to-one", "all2all": "all-to-all", "cleanLabel": "clean-label"}


def cell(attack: str, given: Mapping[str, Any]) -> Cell:
    """The one cell that flags and YAML describe."""
    own = own_flags("attacks", attack)
    said = {name: flag_of(attack, name) for name in own}
    options = {name: own[name](given[flag]) for name, flag in said.items() if flag in given}
    trans = given.get("attack_label_trans")
    if trans is not None:
        if trans not in LABELS:
            raise nearest(trans, LABELS, "values of --attack_label_trans")
        options.setdefault("label_mode", LABELS[trans])
    dataset = given.get("dataset", "cifar10")
    rules = rules_of(given, dataset)
    rules = replace(
        rules,
        model=record.our_model(given.get("model", rules.model)),
        target=given.get("attack_target", rules.target),
    )
    suite = Suite(
        "poison",
        rules,
        (dataset,),
        (registry.join(attack, options),),
        ("none",),
        rates=(given.get("pratio", 0.1),),
        seeds=(given.get("random_seed", 0),),
    )
    return suite.cells()[0]


def flag_of(attack: str, option: str) -> str:
    """The flag of an option: its name, after the attack's where a flag there has that name."""
    return f"{attack}_{option}" if option in FLAGS else option


def main(words: list[str]) -> None:
    """``ATTACK FLAGS``."""
    known = registry.modules("attacks")
    if not words or words[0] not in known:
        raise nearest(words[0] if words else "", known, "attacks")
    attack = words[0]
    parser = argparse.ArgumentParser(prog=f"attack/{attack}.py")
    own = {flag_of(attack, name): kind for name, kind in own_flags("attacks", attack).items()}
    add_flags(parser, {**UNUSED, **FLAGS}, own)
    parsed = vars(parser.parse_args(words[1:]))
    flags = {name: value for name, value in parsed.items() if value is not None}
    given = yaml_values(flags.get("yaml_path")) | yaml_values(flags.get("bd_yaml_path")) | flags
    if "save_folder_name" not in given:
        raise InputError("--save_folder_name NAME is missing: the record is record/NAME")
    own_cell = cell(attack, given)
    options = Options(
        out=Path("record") / ".backdoorbench_ext",
        data=data_folder(given, own_cell.dataset),
        device=device_of(given),
    )
    to = Path("record") / given["save_folder_name"]
    with bars(Console(stderr=True)) as report:
        counts = commands.poison(own_cell, options, to, partial(report, attack))
    print(f"wrote {to}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


def script(attack: str) -> None:
    """What a linked ``attack/NAME.py`` runs."""
    told(main, [attack, *sys.argv[1:]])


if __name__ == "__main__":
    told(main, sys.argv[1:])

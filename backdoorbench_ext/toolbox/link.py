"""``bbx link HOME``: our attacks and defenses among BackdoorBench's scripts.

It has no registry: its folders of scripts, with their YAML files, are one. Written there is a
script of two lines for each method of ours whose name is free, and its settings; nothing of its own
is changed. The first line of every file tells who wrote it, and ``--undo`` takes away those alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import yaml

from .. import registry
from ..errors import InputError
from ..protocols import BACKDOORBENCH
from .attack_script import flag_of
from .interface import FLAGS, RECIPE, SCHEDULES
from .record import their_model

MARK = "# written by bbx link (backdoorbench_ext); bbx link --undo takes it away\n"
# the data sets that both know
DATASETS = ("cifar10", "gtsrb")
# whose scripts run as these modules
MODULES = {
    "attack": "backdoorbench_ext.toolbox.attack_script",
    "defense": "backdoorbench_ext.toolbox.interface",
}


def files(home: Path) -> Iterator[tuple[Path, str]]:
    """What is written, below the root of a checkout, and its text."""
    for folder, module in MODULES.items():
        for name in registry.modules(f"{folder}s"):
            script = home / folder / f"{name}.py"
            if name == "none" or (script.exists() and not _ours(script)):
                continue
            words = f"from {module} import script\n\nscript({name!r})\n"
            yield script, MARK + words
            settings = home / "config" / folder / name
            if folder == "attack":
                yield settings / "default.yaml", MARK + yaml.safe_dump(_attack_settings(name))
                continue
            for dataset in DATASETS:
                text = yaml.safe_dump(_defense_settings(name, dataset), sort_keys=False)
                yield settings / f"{dataset}.yaml", MARK + text


def link(home: Path) -> list[Path]:
    """Write them; the files.

    Raises:
        InputError: no checkout, or a file there that is not ours has the name of a setting.
    """
    _check(home)
    found = list(files(home))
    for file, _ in found:
        if file.exists() and not _ours(file):
            raise InputError(f"{file} is there already, and not ours")
    for file, text in found:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return [file for file, _ in found]


def unlink(home: Path) -> list[Path]:
    """Take away what ``link`` wrote, whatever we have by now; the files."""
    _check(home)
    there = [*home.glob("attack/*.py"), *home.glob("defense/*.py")]
    there += [*home.glob("config/attack/*/*.yaml"), *home.glob("config/defense/*/*.yaml")]
    gone = [file for file in there if _ours(file)]
    for file in gone:
        file.unlink()
        if file.suffix == ".yaml" and not any(file.parent.iterdir()):
            file.parent.rmdir()
    return gone


def _check(home: Path) -> None:
    if not (home / "utils" / "aggregate_block").is_dir():
        raise InputError(f"{home} is no checkout of BackdoorBench")


def _ours(file: Path) -> bool:
    return file.read_bytes().startswith(MARK.encode())


def _attack_settings(name: str) -> dict[str, object]:
    """Our options, as they are by default."""
    options = asdict(registry.get_class("attacks", name)())
    return {flag_of(name, option): value for option, value in options.items() if value is not None}


def _defense_settings(name: str, dataset: str) -> dict[str, object]:
    """The training as in our protocol ``backdoorbench``, and our options as they are by default.

    An option that is called as one of its flags is not in the file, where that means the training.
    """
    rules = BACKDOORBENCH.on(dataset)
    schedules = {ours: theirs for theirs, ours in SCHEDULES.items()}
    settings: dict[str, object] = {
        "device": "cuda",
        "dataset": dataset,
        "dataset_path": "./data",
        "model": their_model(rules.model),
        "lr_scheduler": schedules[rules.recipe.schedule],
        "random_seed": 0,
        "ratio": rules.reserve,
    }
    settings |= {flag: getattr(rules.recipe, field) for flag, field in RECIPE.items()}
    options = asdict(registry.get_class("defenses", name)())
    own = {k: v for k, v in options.items() if v is not None and k not in FLAGS}
    return settings | own

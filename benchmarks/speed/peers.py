"""Beside BackdoorBench and BackdoorBox: ``python -m benchmarks.speed.peers --backdoorbench DIR
--backdoorbox DIR --dataset cifar10 --data DIR [--images 50000]``. BackdoorBench has no WRN-16-1:
with ``--model wrn16_1`` leave it out.

The same network on the same images with BadNets at 10 %, by BackdoorBench's own script, by
BackdoorBox's own loop and by ours, in turn, each round each in a process of its own: images a
second of training, seconds until the poisoned images are there, seconds of the whole cell, peak
memory. The checkouts are yours (commits f02e353 and af3afd1 were tried) and are not written to but
for BackdoorBench's ``record/``, from which its run is removed again; what is not given is left out.

All have the same batch size, crop and flip. The peers compute in float32 and evaluate after every
epoch; ours computes in bf16 where the device does and evaluates once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

from backdoorbench_ext import datasets
from backdoorbench_ext.devices import cores, keep_memory
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.models import Net
from backdoorbench_ext.options import Options
from backdoorbench_ext.protocols import BACKDOORBENCH
from backdoorbench_ext.suite import Cell
from backdoorbench_ext.toolbox.launch import old_names, served
from backdoorbench_ext.toolbox.process import image_arrays

from .timing import arguments, keep

# what is measured, and what tables call it
MEASURED = {
    "images/s": "training, images/s",
    "poison s": "seconds to poison",
    "cell s": "seconds of the cell",
    "MiB": "peak memory, MiB",
}
BATCH = 128
# what BackdoorBox imports for methods that are not run here, and does not hold itself
ABSENT = (
    "ArtFlow",
    "ArtFlow.glow_adain",
    "criteria",
    "criteria.parse_related_loss",
    "models",
    "models.psp",
    "datasets",
    "datasets.latents_dataset_inference",
    "hairclip_mapper",
    "hdbscan",
    "umap",
)
# found from any folder, as the name that this runs under is not
MODULE = "backdoorbench_ext.benchmarks.speed.peers"


def serve(given: argparse.Namespace) -> None:
    """Have torchvision's CIFAR10 hold our images, so that all train on the same ones."""
    name = f"{given.dataset}[train={given.images},test={given.test}]"
    train, test = datasets.load(name, given.data)
    classes = np.asarray(len(train.classes))
    served({"classes": classes, **image_arrays("train", train), **image_arrays("test", test)})


def ours(given: argparse.Namespace) -> dict[str, float]:
    """A cell of ours, without files."""
    recipe = replace(BACKDOORBENCH.recipe, epochs=given.epochs)
    rules = replace(BACKDOORBENCH, model=given.model, recipe=recipe, reserve=0.0, overrides={})
    name = f"{given.dataset}[train={given.images},test={given.test}]"
    with tempfile.TemporaryDirectory() as folder:
        options = Options(out=Path(folder), data=given.data, device=given.device)
        lab = Lab(Cell(name, "badnets", "none", 0.1, 0, rules), options)
        # the others are given their images before, too
        _ = lab.clean
        begun = time.perf_counter()
        poisoned = lab.poisoned
        engine = lab.engine()
        poisoning = time.perf_counter() - begun
        net = lab.defense.fit(poisoned.observed(), engine)
        engine.measure(net, lab.test, lab.triggered)["asr"].tolist()
        cell = time.perf_counter() - begun
    trained = engine.log_book
    return {
        "images/s": trained.images / trained.seconds["train"],
        "poison s": poisoning,
        "cell s": cell,
    }


def backdoorbench(given: argparse.Namespace) -> dict[str, float]:
    """``attack/badnet.py``, its stages called as its own last lines call them."""
    old_names()
    sys.path.insert(0, str(Path.cwd()))
    folder = f"bbx_peers_{os.getpid()}"
    sys.argv = [
        "badnet.py",
        *("--yaml_path", "./config/attack/prototype/cifar10.yaml"),
        *("--bd_yaml_path", "./config/attack/badnet/default.yaml"),
        *("--patch_mask_path", "./resource/badnet/trigger_image.png"),
        *("--dataset", "cifar10", "--dataset_path", "./data", "--pratio", "0.1"),
        *("--model", given.model, "--epochs", str(given.epochs), "--batch_size", str(BATCH)),
        *("--num_workers", str(given.workers), "--device", given.device),
        *("--save_folder_name", folder),
    ]
    from attack.badnet import BadNet  # type: ignore[import-not-found]
    from utils.trainer_cls import BackdoorModelTrainer  # type: ignore[import-not-found]

    training = timed(BackdoorModelTrainer, "train_one_epoch_on_mix")
    Path("record").mkdir(exist_ok=True)
    attack = BadNet()
    parser = attack.set_bd_args(attack.set_args(argparse.ArgumentParser()))
    args = parser.parse_args()
    attack.add_bd_yaml_to_args(args)
    attack.add_yaml_to_args(args)
    try:
        attack.prepare(attack.process_args(args))
        begun = time.perf_counter()
        attack.stage1_non_training_data_prepare()
        poisoning = time.perf_counter() - begun
        attack.stage2_training()
        cell = time.perf_counter() - begun
    finally:
        shutil.rmtree(Path("record") / folder, ignore_errors=True)
    # the incomplete last batch is left out
    images = given.epochs * (given.images // BATCH * BATCH)
    return {"images/s": images / sum(training), "poison s": poisoning, "cell s": cell}


def backdoorbox(given: argparse.Namespace) -> dict[str, float]:
    """``core.BadNets`` with its ``train``; it poisons images as they are loaded."""
    sys.path.insert(0, str(Path.cwd()))
    for name in ABSENT:
        sys.modules.setdefault(name, MagicMock())
    # a name that PyTorch has dropped
    vars(sys.modules["torch.autograd.gradcheck"]).setdefault("zero_gradients", None)
    import core  # type: ignore[import-not-found]
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    change = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
        ]
    )
    corner = torch.zeros(32, 32, dtype=torch.uint8)
    corner[-3:, -3:] = 255
    weight = (corner > 0).float()
    with tempfile.TemporaryDirectory() as folder:
        schedule = {
            "device": "GPU" if given.device.startswith("cuda") else "CPU",
            "GPU_num": 1,
            "benign_training": False,
            "batch_size": BATCH,
            "num_workers": given.workers,
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "gamma": 0.1,
            "schedule": [],
            "epochs": given.epochs,
            "log_iteration_interval": 10**9,
            "test_epoch_interval": 1,
            "save_epoch_interval": 10**9,
            "save_dir": folder,
            "experiment_name": "peers",
        }
        begun = time.perf_counter()
        attack = core.BadNets(
            train_dataset=CIFAR10("", train=True, transform=change),
            test_dataset=CIFAR10(
                "", train=False, transform=transforms.Compose([transforms.ToTensor()])
            ),
            model=Net(given.model, 10),
            loss=torch.nn.CrossEntropyLoss(),
            y_target=0,
            poisoned_rate=0.1,
            pattern=corner[None],
            weight=weight[None],
            schedule=schedule,
        )
        poisoning = time.perf_counter() - begun
        testing = timed(type(attack), "_test")
        started = time.perf_counter()
        attack.train()
        ended = time.perf_counter()
    images = given.epochs * given.images
    return {
        "images/s": images / (ended - started - sum(testing)),
        "poison s": poisoning,
        "cell s": ended - begun,
    }


def timed(cls: type, name: str) -> list[float]:
    """The seconds of each call of a method from now on."""
    seconds: list[float] = []
    method: Callable[..., Any] = getattr(cls, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = method(*args, **kwargs)
        seconds.append(time.perf_counter() - begun)
        return result

    setattr(cls, name, watched)
    return seconds


WAYS = {"BackdoorBench": backdoorbench, "BackdoorBox": backdoorbox, "ours": ours}


def measured(way: str, given: Mapping[str, Any], home: Path | None) -> dict[str, float]:
    """A cell in a process of its own; MiB is what it held at most.

    Raises:
        SystemExit: it failed; its last lines.
    """
    told = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    command = [sys.executable, "-m", MODULE, json.dumps({**told, "way": way})]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, cwd=home, stdout=said, stderr=subprocess.STDOUT)
        # of this child alone
        _, status, used = os.wait4(child.pid, 0)
        said.seek(0)
        lines = said.read().strip().splitlines()
    if status:
        raise SystemExit(f"{way} failed: {' | '.join(lines[-3:])}")
    return {**json.loads(lines[-1]), "MiB": used.ru_maxrss / 1024}


def one(told: dict[str, Any]) -> None:
    """In the process of a cell: run it and print what was measured."""
    way = told.pop("way")
    given = argparse.Namespace(**told)
    given.data = Path(given.data) if given.data else None
    torch.set_num_threads(given.threads)
    if way == "ours":
        keep_memory()
    else:
        serve(given)
    print(json.dumps(WAYS[way](given)))


def show(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """A table of medians with lowest and highest, and how many times ours is theirs."""
    table = {
        what: {way: [cell[what] for cell in cells] for way, cells in rounds.items()}
        for what in MEASURED
    }
    for what, ways in table.items():
        print(f"\n{MEASURED[what]}")
        for way, values in ways.items():
            ratio = median(values) / median(ways["ours"])
            print(
                f"  {way:14} {median(values):10,.2f}   ({min(values):,.2f} to {max(values):,.2f})"
                + ("" if way == "ours" else f"   {ratio:.2f} times ours")
            )
    return table


@in_one_line()
def main() -> None:
    given = arguments(
        __doc__,
        rounds=5,
        model="preactresnet18",
        images=1000,
        test=500,
        epochs=1,
        workers=cores(),
        backdoorbench="",
        backdoorbox="",
    )
    homes = {"BackdoorBench": given.backdoorbench, "BackdoorBox": given.backdoorbox}
    for way, home in homes.items():
        if not home:
            print(f"{way} is left out: --{way.lower()} names no checkout")
    ways = {way: Path(home).resolve() for way, home in homes.items() if home}
    told = {
        name: getattr(given, name)
        for name in ("dataset", "model", "images", "test", "epochs", "workers", "threads")
    }
    told |= {"data": given.data and given.data.resolve(), "device": str(given.device)}
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in (*ways, "ours")}
    for number in range(given.rounds):
        for way, cells in rounds.items():
            cells.append(measured(way, told, ways.get(way)))
            print(f"round {number + 1}, {way}: {cells[-1]}", flush=True)
    given.data = None
    keep("peers", given, {}, settings=told | {"data": ""}, measured=show(rounds))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        one(json.loads(sys.argv[1]))
    else:
        main()

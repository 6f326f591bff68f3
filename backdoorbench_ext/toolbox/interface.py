"""Our attacks and defenses as BackdoorBench's code calls them: transforms of one picture, and
classes with the methods of its defense scripts.

``TRANSFORMS["badnets"](size=3)`` is an image transform, ``LABELS["badnets"](target=0, classes=10)``
the label transform beside it; ``DEFENSES["cbd"]`` a class, ``CBD`` and ``MCCI`` two of them.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import records, registry
from ..api import Attack
from ..errors import InputError, in_one_line, nearest, reason
from ..files import write_text
from ..lab import Lab
from ..models import Net
from ..options import Options
from ..protocols import BACKDOORBENCH, Protocol
from ..reading import content
from ..work import run_cell
from . import commands, record

# its own base class, when its root is on the path
try:
    from defense.base import defense as Base  # type: ignore[import-not-found]
except ImportError:
    Base = object

log = logging.getLogger(__name__)


def _true(text: object) -> bool:
    return str(text) in ("True", "true", "1")


# what every script of BackdoorBench's is told
TRAINING: dict[str, Any] = {
    "device": str,
    "dataset_path": str,
    "dataset": str,
    "epochs": int,
    "batch_size": int,
    "lr": float,
    "lr_scheduler": str,
    "model": str,
    "client_optimizer": str,
    "sgd_momentum": float,
    "wd": float,
    "random_seed": int,
    "yaml_path": str,
}
FLAGS: dict[str, Any] = TRAINING | {"result_file": str, "ratio": float, "index": str}
UNUSED: dict[str, Any] = {
    "pin_memory": _true,
    "non_blocking": _true,
    "prefetch": _true,
    "amp": _true,
    "checkpoint_load": str,
    "checkpoint_save": str,
    "log": str,
    "num_workers": float,
    "frequency_save": int,
    "steplr_stepsize": int,
    "steplr_gamma": float,
    "steplr_milestones": str,
}
"""Flags that every defense there has and that mean nothing here: images are on the device,
precision is the device's, the state is always kept.
"""
SHORT = {"pin_memory": "-pm", "non_blocking": "-nb", "prefetch": "-pf"}
SCHEDULES = {"CosineAnnealingLR": "cosine", None: "constant"}
RECIPE = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "client_optimizer": "optimizer",
    "sgd_momentum": "momentum",
    "wd": "weight_decay",
}
# what it calls our options, where both have the method
THEIRS = {
    "abl": {
        "tuning_epochs": "isolation_epochs",
        "finetuning_epochs": "epochs",
        "isolation_ratio": "isolated",
        "lr_unlearning_init": "unlearning_lr",
    },
    "anp": {"nb_iter": "steps", "anp_eps": "eps", "anp_alpha": "alpha"},
    "dbd": {
        "epoch_self": "contrastive_epochs",
        "epoch_warmup": "warmup_epochs",
        "batch_size_self": "contrastive_batch",
        "epsilon": "trusted",
    },
    "fp": {"acc_ratio": "drop"},
    "ft_sam": {"rho_max": "rho"},
    "i_bau": {"n_rounds": "rounds", "K": "k"},
    "mcr": {
        "train_curve_epochs": "epochs",
        "ft_epochs": "finetune_epochs",
        "test_t": "t",
        "acc_ratio": "drop",
    },
    "nab": {
        "epoch_lga": "isolation_epochs",
        "epoch_self": "contrastive_epochs",
        "batch_size_self": "contrastive_batch",
    },
    "nad": {"te_epochs": "teacher_epochs"},
}


class Registry(Mapping[str, Any]):
    """Every method of a kind by its name, made when asked for."""

    def __init__(self, kind: str, make: Callable[[str], Any]) -> None:
        self.kind = kind
        self.make = make

    def __getitem__(self, name: str) -> Any:
        if name not in registry.modules(self.kind):
            raise KeyError(str(nearest(name, registry.modules(self.kind), self.kind)))
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(registry.modules(self.kind))

    def __len__(self) -> int:
        return len(registry.modules(self.kind))


class Transform:
    """An attack's trigger on one picture: ``transform(picture, target=label,
    image_serial_id=index)`` -> picture.
    """

    def __init__(self, attack: Attack) -> None:
        if attack.learns or attack.supplies or attack.refines:
            raise InputError(
                f"{type(attack).__name__} learns its trigger or its images: write a record with "
                "`bbx poison --format backdoorbench`"
            )
        self.attack = attack

    def __call__(self, img: Any, target: Any = None, image_serial_id: Any = None) -> Image.Image:
        x = torch.from_numpy(
            np.array(img.convert("RGB") if isinstance(img, Image.Image) else img, np.uint8)
        ).permute(2, 0, 1)[None]
        return Image.fromarray(self.attack.stamp(x)[0].permute(1, 2, 0).contiguous().numpy())


class Labels:
    """The label an attack gives: ``labels(label)``."""

    def __init__(self, attack: Attack, target: int, classes: int) -> None:
        self.attack = attack
        self.target = target
        self.classes = classes

    def __call__(self, original_label: Any, original_index: Any = None, img: Any = None) -> int:
        return int(self.attack.goal(torch.tensor([int(original_label)]), self.target, self.classes))


class Denormalised(nn.Module):
    """A network of pixels in [0, 1] for inputs that were normalised."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.mean, self.std = (nn.Buffer(torch.tensor(v).view(1, 3, 1, 1)) for v in (mean, std))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x * self.std + self.mean)
        return out


class Script(Base):  # type: ignore[misc]
    """What all our defenses are to BackdoorBench: reads ``record/NAME``, trains, writes
    ``record/NAME/defense/METHOD``.
    """

    method: ClassVar[str]

    def __init__(self, args: argparse.Namespace) -> None:
        flags = {name: value for name, value in vars(args).items() if value is not None}
        told = yaml_values(flags.get("yaml_path"))
        given = told | flags
        self.args = argparse.Namespace(**given)
        self.given = given
        own = own_flags("defenses", self.method)
        theirs = THEIRS.get(self.method, {})
        # what every script there has means the training in a YAML file, and on the command line the
        # method, if it has an option of that name
        self.training = told | {name: value for name, value in flags.items() if name not in own}
        ours = {name: value for name, value in told.items() if name not in FLAGS} | flags
        ours = {theirs.get(name, name): value for name, value in ours.items()}
        usual = registry.get_class("defenses", self.method)()
        options = {name: own[name](value) for name, value in ours.items() if name in own}
        self.options = {k: v for k, v in options.items() if v != getattr(usual, k)}
        unknown = [name for name in given if name not in {**FLAGS, **UNUSED, **own, **theirs}]
        if unknown:
            log.warning("not used by %s: %s", self.method, ", ".join(sorted(unknown)))
        self.trainer: nn.Module | None = None

    def set_result(self, result_file: str) -> None:
        """Read and check ``record/RESULT_FILE``, and make the folders of the result."""
        self.folder = Path("record") / result_file
        self.result = record.read(self.folder)
        if self.given.get("dataset", self.result.dataset) != self.result.dataset:
            raise InputError(
                f"{self.folder} was made from {self.result.dataset}, not {self.given['dataset']}"
            )
        self.save_path = self.folder / "defense" / self.method
        for part in ("checkpoint", "log"):
            (self.save_path / part).mkdir(parents=True, exist_ok=True)

    def set_trainer(self, model: nn.Module) -> None:
        """Kept for its code's sake: training is our engine's."""
        self.trainer = model

    def set_logger(self) -> None:
        """Log to the console and to ``log/TIME.log``."""
        form = logging.Formatter("%(asctime)s [%(levelname)-8s] %(message)s", "%Y-%m-%d:%H:%M:%S")
        for handler in (
            logging.FileHandler(self.save_path / "log" / time.strftime("%Y_%m_%d_%H_%M_%S.log")),
            logging.StreamHandler(),
        ):
            handler.setFormatter(form)
            log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.info("%s: %s", self.method, self.given)

    def set_devices(self) -> None:
        """``cuda`` and ``cuda:0`` fall back to the CPU where there is no GPU, as its scripts do."""
        self.device = device_of(self.given)

    def mitigation(self) -> dict[str, Any]:
        """Train and measure; ``defense_result.pt`` (where BackdoorBench knows the network), its CSV
        and our record. The network takes normalised inputs.
        """
        self.set_devices()
        cell = self.cell()
        kept = self.save_path / "checkpoint"
        options = Options(
            out=kept, data=data_folder(self.given, self.result.dataset), device=self.device
        )

        def progress(stage: str, done: int, total: int) -> None:
            log.info("%s: %d of %d", stage, done, total)

        lab = Lab(cell, options, progress)
        lab.check()
        result = run_cell(lab, kept / "state")
        net = result.net
        metrics = result.record["metrics"]
        records.write(self.save_path / "record.json", result.record)
        shutil.rmtree(kept / "state", ignore_errors=True)
        rules = cell.rules
        curves = result.record["curves"].values()
        numbers = commands.table(metrics, max(map(len, curves), default=0))
        write_text(self.save_path / f"{self.method}_df.csv", numbers)
        try:
            record.save(
                self.save_path / "defense_result.pt",
                record.model_state(rules.model, net, self.result.classes),
            )
        except InputError as error:
            log.warning("no defense_result.pt: %s", error)
        log.info(
            "CA %.2f  ASR %.2f  ARR %.2f",
            *(100 * hits / n for hits, n in metrics.values()),
        )
        if isinstance(net, Net):
            return {"model": net.backbone}
        if isinstance(rules.normalise, bool):
            return {"model": net}
        return {"model": Denormalised(net, *rules.normalise)}

    def defense(self, result_file: str) -> dict[str, Any]:
        """Everything, as its scripts call it."""
        self.set_result(result_file)
        self.set_logger()
        return self.mitigation()

    def cell(self) -> Any:
        """The one cell that flags and YAML describe."""
        given = self.given
        rules = rules_of(self.training, self.result.dataset)
        suite = commands.defending(
            self.folder,
            (registry.join(self.method, self.options),),
            "",
            rules,
            (given.get("random_seed", 0),),
            given.get("index", ""),
        )
        if "model" in given and record.our_model(given["model"]) != suite.protocol.model:
            raise InputError(
                f"{self.folder} holds a {self.result.model_name}, not a {given['model']}"
            )
        return suite.cells()[0]


def data_folder(given: Mapping[str, Any], dataset: str) -> Path:
    """Where the clean data lie: ``DATASET_PATH/DATASET``, as BackdoorBench has them, or an ``.npz``
    in ``DATASET_PATH``.
    """
    root = Path(given.get("dataset_path", "./data"))
    return root if (root / f"{dataset}.npz").is_file() else root / dataset


def device_of(given: Mapping[str, Any]) -> str:
    """The first device of ``cuda:0,1``; the CPU in place of a GPU that is not there, as in its
    scripts.
    """
    name = str(given.get("device", "auto")).partition(",")[0]
    return "cpu" if name.startswith("cuda") and not torch.cuda.is_available() else name


def rules_of(given: Mapping[str, Any], dataset: str) -> Protocol:
    """Our protocol ``backdoorbench`` on a data set, with what flags and YAML say of the training.

    Raises:
        InputError: a schedule that we do not have.
    """
    rules = BACKDOORBENCH.on(dataset)
    changed = {ours: given[flag] for flag, ours in RECIPE.items() if flag in given}
    if "lr_scheduler" in given:
        if given["lr_scheduler"] not in SCHEDULES:
            raise InputError(
                f"--lr_scheduler must be {' or '.join(map(str, SCHEDULES))}, not "
                f"{given['lr_scheduler']}"
            )
        changed["schedule"] = SCHEDULES[given["lr_scheduler"]]
    reserve = given.get("ratio", BACKDOORBENCH.reserve)
    return replace(rules, recipe=replace(rules.recipe, **changed), reserve=reserve)


def own_flags(kind: str, method: str) -> dict[str, Any]:
    """A method's options as flags: name -> type."""
    cls = registry.get_class(kind, method)
    hints = get_type_hints(cls)

    def plain(hint: Any) -> Any:
        either = (hint, *getattr(hint, "__args__", ()))
        if bool in either:
            return _true
        return next((plain for plain in (int, float, str) if plain in either), str)

    return {f.name: plain(hints[f.name]) for f in fields(cls)}


def yaml_values(file: str | None) -> dict[str, Any]:
    """What a YAML file of settings says, without what it leaves empty; nothing without a file.

    Raises:
        InputError: it cannot be read, or holds no names and values.
    """
    import yaml

    if not file:
        return {}
    try:
        values = yaml.safe_load(content(Path(file)).decode())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: no readable YAML file ({reason(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: must hold names and values")
    return {name: value for name, value in values.items() if value is not None}


def add_flags(
    parser: argparse.ArgumentParser, theirs: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Have a parser take its flags and our options, none of which is set unless told."""
    for name, kind in {**theirs, **own}.items():
        words = "not used" if name in UNUSED else None
        if name in own:
            words = "an option of ours"
        short = [SHORT[name]] if name in SHORT else []
        parser.add_argument(*short, f"--{name}", type=kind, help=words)


def _script(method: str) -> type[Script]:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_flags(parser, {**UNUSED, **FLAGS}, own_flags("defenses", method))

    name = registry.get_class("defenses", method).__name__
    return type(
        name,
        (Script,),
        {
            "method": method,
            "add_arguments": staticmethod(add_arguments),
            "__doc__": f"``{method}`` under BackdoorBench's interface.",
        },
    )


def _attack(name: str, options: dict[str, Any]) -> Attack:
    attack = registry.get_class("attacks", name)(**options)
    assert isinstance(attack, Attack)
    return attack


TRANSFORMS = Registry("attacks", lambda name: lambda **options: Transform(_attack(name, options)))
LABELS = Registry(
    "attacks",
    lambda name: lambda target, classes, **options: Labels(_attack(name, options), target, classes),
)
DEFENSES = Registry("defenses", _script)
CBD = DEFENSES["cbd"]
MCCI = DEFENSES["mcci"]


def main(words: list[str]) -> None:
    """``python -m backdoorbench_ext.toolbox METHOD FLAGS``: one of BackdoorBench's defense scripts,
    run from its root folder.
    """
    if not words or words[0].startswith("-"):
        raise InputError(
            "usage: python -m backdoorbench_ext.toolbox METHOD --result_file NAME ...; methods: "
            f"{', '.join(DEFENSES)}"
        )
    if words[0] not in DEFENSES:
        raise nearest(words[0], DEFENSES, "defenses")
    script = DEFENSES[words[0]]
    parser = argparse.ArgumentParser(
        prog=f"python -m backdoorbench_ext.toolbox {words[0]}",
        description=script.__doc__,
        argument_default=None,
    )
    script.add_arguments(parser)
    args = parser.parse_args(words[1:])
    if args.result_file is None:
        raise InputError("--result_file NAME is missing: the record is record/NAME")
    script(args).defense(args.result_file)


def told(run: Callable[[list[str]], None], words: list[str]) -> None:
    """Run something with its words; what is wrong with them is one line, and the exit code 2."""
    with in_one_line("backdoorbench_ext.toolbox"):
        run(words)


def script(method: str) -> None:
    """What a linked ``defense/NAME.py`` runs."""
    told(main, [method, *sys.argv[1:]])

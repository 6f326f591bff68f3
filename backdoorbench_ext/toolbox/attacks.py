"""Attacks whose images come from BackdoorBench: ``record:FOLDER`` reads one of its records,
``backdoorbench:NAME`` has its own code make them.

``BACKDOORBENCH_HOME`` is the folder of a checkout, ``BACKDOORBENCH_PYTHON`` the Python that has
what it needs (ours unless set). Attacks that only change images are called through its dispatch;
those that control the training run as its own scripts, and their record is read back. Options are
its own flags.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..api import Attack, option
from ..errors import InputError, nearest
from ..files import locked
from ..images import Images, Poisoned, unmarked
from ..models import Net
from ..reading import place
from . import checkout, record
from .process import image_arrays, launch

CLEAN_LABEL = ("sig", "lc", "ctrl")
# decided by our cell, or by us
OURS = (
    *("attack", "attack_label_trans", "attack_target", "bd_yaml_path", "dataset", "dataset_path"),
    *("pratio", "random_seed", "save_folder_name", "yaml_path"),
)
# whose records hold no training set
NO_TRAINING_SET = ("blind", "lira")
# images that must have been made before, where the script looks for them
MADE_BEFORE = {
    "ssba": "resource/ssba/cifar10_ssba_{part}_b1.npy",
    "lc": "resource/label-consistent/data/*_cifar10_*_{part}.npy",
    "poison_ink": "resource/poison_ink/{part}",
}


class Supplied(Attack):
    """An attack without a trigger that could be called."""

    def trigger(self, x: Tensor) -> Tensor:
        raise InputError(
            f"{type(self).__name__} has no trigger of its own: its images come from BackdoorBench"
        )


@dataclass(frozen=True)
class RecordAttack(Supplied):
    """A record of BackdoorBench: its poisoned images, and its network as the victim unless told
    otherwise.
    """

    path: str = option("", "the record's folder")
    network: str = option(
        "record",
        "the victim: the record's network, or one trained here",
        choices=("record", "trained"),
    )
    index: str = option(
        "",
        "a file of the places of clean images, the reserve; if not given, reserve.txt beside the "
        "record, or else the protocol's",
    )

    def spec(self) -> dict[str, Any]:
        folder = place(self.path)
        return super().spec() | {
            "path": folder.resolve().name,
            "sha256": record.digest(folder) if (folder / "attack_result.pt").is_file() else "",
            "index": record.file_digest(self._index) if self._index else "",
        }

    @property
    def _index(self) -> Path | None:
        file = place(self.index) if self.index else place(self.path) / "reserve.txt"
        return file if self.index or file.is_file() else None

    def holds(self, n: int) -> Tensor | None:
        return record.places(self._index, n) if self._index else None

    def check(self, x: Tensor) -> None:
        record.read(place(self.path))
        if self.trains_itself and self.network == "trained":
            raise InputError(f"record:{self.path} holds no training set to train a network on")

    @property
    def trains_itself(self) -> bool:
        return record.read(place(self.path)).train is None

    def supply(
        self,
        train: Images,
        test: Images,
        held: Tensor,
        *,
        target: int,
        rate: float,
        rng: torch.Generator,
        folder: Path,
        model: str,
    ) -> tuple[Poisoned, Poisoned]:
        return _sets(record.read(place(self.path)), train, test, held, target, rate)

    def victim(self, net: nn.Module, folder: Path) -> Mapping[str, Tensor] | None:
        assert isinstance(net, Net)
        return record.read(place(self.path)).fit_to(net) if self.network == "record" else None


def _sets(
    source: record.Record, train: Images, test: Images, held: Tensor, target: int, rate: float
) -> tuple[Poisoned, Poisoned]:
    if source.train is None:
        # for defenses that start from the victim
        return unmarked(train[~held]), source.poisoned("test", test)
    least, most = source.rates
    slack = 0.5 / max(1, len(train)) + 5e-4
    if not least - slack <= rate <= most + slack:
        raise InputError(
            f"{source.folder}: its poisoning rate is {most:g}, not {rate:g}: give --rates {most:g}"
        )
    if len(source.targets) == 1 and source.targets != [target]:
        raise InputError(
            f"{source.folder}: its target is {source.targets[0]}, the protocol's {target}: give "
            f"--target {source.targets[0]}"
        )
    poisoned = source.poisoned("train", train)
    return poisoned[~held[torch.from_numpy(source.train.index)]], source.poisoned("test", test)


@dataclass(frozen=True)
class BackdoorBenchAttack(Supplied):
    """An attack of BackdoorBench, by the name of its script; ``flags`` are the script's own, above
    those of its YAML files.
    """

    method: str = ""
    flags: dict = field(default_factory=dict)  # type: ignore[type-arg]  # options are checked against plain types
    seed: int | None = option(None, "its random_seed; if not set, the cell's seed", low=0)
    network: str = option(
        "trained",
        "the victim: trained here on its images, or the network that came with them",
        choices=("record", "trained"),
    )

    @property
    def trains_itself(self) -> bool:
        return self.method in NO_TRAINING_SET

    def check(self, x: Tensor) -> None:
        name = f"backdoorbench:{self.method}"
        checkout.check_name(name, checkout.attacks(), "attacks")
        why = checkout.refused(self.method)
        if why:
            raise InputError(f"{name}: {why}")
        if self.network == "record" and self.method in checkout.DISPATCH:
            raise InputError(f"{name} changes images alone: no network comes with them")
        if self.network == "trained" and self.trains_itself:
            raise InputError(f"{name} makes no training set: say network=record")
        if self.network == "record" and "model" in self.flags:
            raise InputError(f"{name}: model is decided by the cell")
        has = self._has()
        if self.method == "trojannn" and "pretrain_model_path" not in self.flags:
            raise InputError(f"{name} starts from a network: give pretrain_model_path=FILE")
        checkout.check_flags(name, self.flags, has, OURS)
        if self.method in MADE_BEFORE:
            for part in ("train", "test"):
                self._check_made(name, part, has)

    def _has(self) -> list[str]:
        """The flags of its script."""
        own = f"attack/{self.method}.py"
        # those that badnet.py defines for most of the others, the rate among them
        shares = "add_common_attack_args" in (checkout.home() / own).read_text("utf-8")
        common = ["attack/badnet.py"] if shares else []
        return checkout.flags(own, "attack/prototype.py", *common)

    def _check_made(self, name: str, part: str, has: list[str]) -> None:
        """Raises: InputError: images that the script only reads are not there."""
        flag = f"attack_{part}_replace_imgs_path"
        if flag not in has:
            return
        place = str(self.flags.get(flag, MADE_BEFORE[self.method].format(part=part)))
        # a path from the root goes its own way
        found = Path(place).exists() if Path(place).is_absolute() else self._found(place)
        if not found:
            raise InputError(
                f"{name} reads images that were made before, and {place} of the checkout is not "
                f"there: give {flag}=PATH; its README files say how they are made"
            )

    def _found(self, place: str) -> bool:
        return any(checkout.home().glob(place.removeprefix("./")))

    def _words(self, target: int, rate: float, model: str) -> list[str]:
        """The flags of its script: the user's, and what the cell decides."""
        given = {
            "dataset": "cifar10",
            "dataset_path": "./data",
            "attack_target": target,
            "pratio": rate,
            "random_seed": self.seed or 0,
            "device": "cuda:0" if torch.cuda.is_available() else "cpu",
        }
        if self.method == "ftrojann":
            # its default names a folder that is not there
            given["bd_yaml_path"] = "./config/attack/ftrojannn/default.yaml"
        if self.network == "record":
            given["model"] = record.their_model(model)
        has = self._has()
        told = {**given, **self.flags}
        return [
            word
            for flag, value in told.items()
            if flag in has
            for word in (f"--{flag}", *map(str, value if isinstance(value, list) else [value]))
        ]

    def supply(
        self,
        train: Images,
        test: Images,
        held: Tensor,
        *,
        target: int,
        rate: float,
        rng: torch.Generator,
        folder: Path,
        model: str,
    ) -> tuple[Poisoned, Poisoned]:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if self.method in checkout.DISPATCH:
                return self._transformed(train, test, held, target, rate, rng, folder)
            words = self._words(target, rate, model)
            found = self._trained(train, test, words, folder)
            # it was told the rate, and rounds it down in every batch
            return _sets(found, train, test, held, target, found.rate)

    def victim(self, net: nn.Module, folder: Path) -> Mapping[str, Tensor] | None:
        if self.network == "trained":
            return None
        assert isinstance(net, Net)
        return record.read(self._made(folder)).fit_to(net)

    def _made(self, folder: Path) -> Path:
        """Where its script leaves its record."""
        return checkout.home() / "record" / f"bbx_{folder.name}"

    def _transformed(
        self,
        train: Images,
        test: Images,
        held: Tensor,
        target: int,
        rate: float,
        rng: torch.Generator,
        folder: Path,
    ) -> tuple[Poisoned, Poisoned]:
        """The images that we choose, changed by BackdoorBench's transforms; the trained labels
        follow from ``label_mode``.
        """
        kept = (~held).nonzero().flatten()
        rest = train[kept]
        chosen, _ = self.choose(rest, target=target, rate=rate, rng=rng)
        goal = self.goal(test.y, target, len(test.classes))
        counted = (goal != test.y).nonzero().flatten()
        parts = {
            "train": (rest.x[chosen], rest.y[chosen], kept[chosen]),
            "test": (test.x[counted], test.y[counted], counted),
        }
        if not (folder / "after.npz").exists():
            arrays: dict[str, Any] = {"classes": len(train.classes)}
            for part, (x, y, places) in parts.items():
                own = Images(x, y, train.classes)
                arrays |= {**image_arrays(part, own), f"{part}_places": places.numpy()}
            np.savez(folder / "before.npz", **arrays)
            words = [str(folder.resolve()), *self._words(target, rate, "")]
            self._launch("transform", words, folder)
        with np.load(folder / "after.npz", allow_pickle=False) as after:
            made = [
                torch.from_numpy(after[f"{k}_images"]).permute(0, 3, 1, 2).contiguous()
                for k in parts
            ]
        if any(
            m.dtype != torch.uint8 or m.shape != p[0].shape
            for m, p in zip(made, parts.values(), strict=True)
        ):
            raise InputError(
                f"backdoorbench:{self.method} gave images of another kind: "
                f"{[(m.dtype, tuple(m.shape)) for m in made]}"
            )
        x = rest.x.clone()
        y = rest.y.clone()
        mask = torch.zeros_like(rest.y, dtype=torch.bool)
        x[chosen] = made[0]
        y[chosen] = self.goal(rest.y[chosen], target, len(train.classes))
        mask[chosen] = True
        ones = torch.ones(len(counted), dtype=torch.bool)
        triggered = Poisoned(
            made[1], goal[counted], test.classes, true=test.y[counted], mask=ones, cover=~ones
        )
        return Poisoned(
            x, y, train.classes, true=rest.y, mask=mask, cover=torch.zeros_like(mask)
        ), triggered

    def _trained(
        self, train: Images, test: Images, words: list[str], folder: Path
    ) -> record.Record:
        """The record of a run of the script on our images, which is made once."""
        made = self._made(folder)
        if not (made / "attack_result.pt").exists():
            # of a run that was killed
            shutil.rmtree(made, ignore_errors=True)
            (checkout.home() / "record").mkdir(exist_ok=True)
            np.savez(
                folder / "clean.npz",
                classes=len(train.classes),
                **image_arrays("train", train),
                **image_arrays("test", test),
            )
            words = [*words, "--save_folder_name", made.name]
            self._launch("script", [str(folder.resolve()), *words], folder)
            (folder / "clean.npz").unlink()
        return record.read(made)

    def _launch(self, what: str, words: list[str], folder: Path) -> None:
        """In the checkout, whose scripts count on it."""
        launch("launch.py", self.method, [what, self.method, *words], folder, checkout.home())


def made(scheme: str, rest: str, options: dict[str, Any]) -> Attack:
    """The attack of a name with a scheme, ``record:FOLDER`` or ``backdoorbench:NAME``."""
    if scheme == "record":
        known = ["network", "index"]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise nearest(unknown[0], known, "options of record:")
        return RecordAttack(path=rest, **options)
    seed = options.pop("random_seed", None)
    usual = "record" if rest in NO_TRAINING_SET else "trained"
    network = options.pop("network", usual)
    return BackdoorBenchAttack(
        network=network,
        method=rest,
        flags=options,
        seed=seed,
        label_mode="clean-label" if rest in CLEAN_LABEL else "all-to-one",
    )

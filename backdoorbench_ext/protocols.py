"""Protocols: all that must be equal for the methods of one table, named, frozen and printed under
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .errors import InputError, nearest

# networks of ours, registered in timm by ``models``
NETWORKS = (
    "cnn5",
    "fastnet",
    "fastnet_unwhitened",
    "fastnet_l",
    "wrn16_1",
    "wrn40_1",
    "t2t_vit_14",
    "resnet18_cifar",
    "preactresnet18",
)
OPTIMIZERS = ("sgd", "adam", "adamw", "adadelta")
SCHEDULES = ("step", "cosine", "one-cycle", "constant")


# fields of a recipe that are newer than records: told where they differ, so that records keep names
LATER = ("layer_decay", "frozen", "recompute")


def _in_range(rules: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises: InputError: a field that lies outside its range."""
    for name, (low, high) in ranges.items():
        value = getattr(rules, name)
        if not low <= value <= high:
            raise InputError(f"{name} must lie in [{low}, {high}], not {value}")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: passes over the training set.
        batch_size: images a step; the incomplete last batch of an epoch is left out (the next epoch
            shuffles anew).
        optimizer: "sgd" (with ``momentum``, ``nesterov``), "adam", "adamw" or "adadelta".
        lr: the highest learning rate.
        schedule: "step" multiplies the rate by 0.1 at each of ``milestones`` (shares of the
            training), "cosine" goes down to 0, "one-cycle" rises linearly for 20 % and falls
            linearly to 0, "constant" stays.
        weight_decay: L2 penalty through the optimizer, on all parameters; with "adamw" decoupled
            from the gradient.
        layer_decay: what the rate is multiplied by a layer down from the last one, as pretrained
            networks are often fine-tuned (as timm counts layers); 1 for one rate.
        frozen: train the last layer of the network alone.
        recompute: keep few activations and compute the others again (gradient checkpointing): less
            memory for more time, and the same result but for rounding.
    """

    epochs: int = 100
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    schedule: str = "step"
    milestones: tuple[float, ...] = ()
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    layer_decay: float = 1.0
    frozen: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}"
            )
        _in_range(self, {"epochs": (1, 10**6), "batch_size": (1, 10**6), "lr": (0, 10**3)})
        _in_range(self, {"momentum": (0, 1), "weight_decay": (0, 10**3), "layer_decay": (0, 1)})

    def lr_at(self, done: float) -> float:
        """The learning rate when the share ``done`` in [0, 1) of the steps has been taken."""
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(done >= m for m in self.milestones)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "one-cycle":
            return self.lr * min(done / 0.2, (1 - done) / 0.8)
        return self.lr


def _tuned(recipe: Recipe) -> str:
    """How a pretrained network is tuned, where not as a whole."""
    if recipe.frozen:
        return "last layer alone, "
    return f"rate x{recipe.layer_decay:g} a layer down, " if recipe.layer_decay < 1 else ""


@dataclass(frozen=True)
class Protocol:
    """What is the same for all methods of a table.

    Args:
        name: what the table calls it.
        version: raised when the meaning or a value of any field changes.
        model: the network, by timm's name; with a tag of timm's (``tf_efficientnet_b0.aa_in1k``) it
            is pretrained, with ``@NAME-DIGEST`` it starts from weights of a file.
        recipe: how networks are trained.
        crop: padding in pixels (zeros) of the random crop, 0 for none.
        flip: flip half of the images left to right.
        cutout: side in pixels of one square set to 0 at a random place, 0 for none.
        normalise: networks see (x - mean) / std with the mean and std a channel of the training
            images, or with those given as ((r, g, b), (r, g, b)); otherwise [0, 1].
        target: target label.
        spare_target: leave the target class out of the pool that is poisoned.
        reserve: share of the training images, class by class, held out before poisoning as the
            clean data of defenses that need some.
        overrides: data set name -> the fields that differ there.

    The trigger is stamped on the stored image, before any augmentation. ASR and ARR are over the
    test images whose true class is not the target; CA is over all test images.
    """

    name: str
    version: int = 1
    model: str = "wrn16_1"
    recipe: Recipe = Recipe()
    crop: int = 4
    flip: bool = True
    cutout: int = 0
    normalise: bool | tuple[tuple[float, ...], tuple[float, ...]] = False
    target: int = 0
    spare_target: bool = False
    reserve: float = 0.05
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _in_range(self, {"crop": (0, 512), "cutout": (0, 4096), "target": (0, 10**6)})
        _in_range(self, {"reserve": (0, 0.9)})
        # JSON knows no tuples
        if not isinstance(self.normalise, bool):
            mean, std = self.normalise
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise InputError("normalise must be three means and three positive deviations")
            object.__setattr__(self, "normalise", (tuple(mean), tuple(std)))

    def on(self, dataset: str) -> Protocol:
        """The protocol as it holds for a data set, without overrides left."""
        return replace(self, overrides={}, **self.overrides.get(dataset.partition("[")[0], {}))

    def spec(self) -> dict[str, Any]:
        """Every field as plain values; those of ``LATER`` where they are used."""
        spec = asdict(self)
        recipes = [own["recipe"] for own in (spec, *spec["overrides"].values()) if "recipe" in own]
        for recipe in recipes:
            for name in LATER:
                if recipe[name] == getattr(Recipe, name):
                    del recipe[name]
        return spec

    def __str__(self) -> str:
        r = self.recipe
        augment = {
            f"crop {self.crop}": self.crop,
            "flip": self.flip,
            f"cutout {self.cutout}": self.cutout,
        }
        changes = [name for name, wanted in augment.items() if wanted]
        return (
            f"{self.name} v{self.version}: {self.model}, {r.epochs} epochs, batch {r.batch_size}, "
            f"{r.optimizer} lr {r.lr:g} {r.schedule}, "
            f"weight decay {r.weight_decay:g}, {_tuned(r)}augmentation "
            f"{' + '.join(changes) or 'none'} after stamping, "
            f"{'normalised' if self.normalise else 'inputs in [0, 1]'}, target {self.target}, "
            f"pool {'without' if self.spare_target else 'with'} the target class, "
            f"clean reserve {100 * self.reserve:g} %, ASR and ARR without the target class"
        )


_CBD = Recipe(
    epochs=100, batch_size=64, lr=0.1, milestones=(0.2, 0.7), nesterov=True, weight_decay=1e-4
)
# a mirrored digit is none
UNFLIPPED: dict[str, Any] = {"flip": False}
CBD = Protocol(
    name="CBD",
    # 1 had plain momentum
    version=2,
    recipe=_CBD,
    # the releases of ABL and CBD write Cutout(1, 3), whose hole is 2x2
    cutout=2,
    overrides={
        "gtsrb": {
            "target": 1,
            "recipe": replace(_CBD, lr=0.01),
        },
        "imagenette": {"model": "resnet34"},
        "svhn": UNFLIPPED,
    },
)
"""CBD, section 5.1 and appendix A.3 (CVPR 2023, https://arxiv.org/abs/2303.06818); the batch size
and Nesterov's momentum are the release's, and those of ABL and NAD, on which it builds.
"""

MCCI = Protocol(
    name="MCCI",
    model="resnet18_cifar",
    recipe=Recipe(
        epochs=100,
        batch_size=128,
        optimizer="adadelta",
        lr=0.1,
        milestones=(0.3, 0.6, 0.9),
        weight_decay=1e-4,
    ),
    crop=0,
    overrides={
        "gtsrb": {"target": 1},
        "imagenette": {"model": "efficientnet_b0"},
        "svhn": UNFLIPPED,
    },
)
"""MCCI, appendix I (ICLR 2025, https://openreview.net/forum?id=ho4mNiwr2n); optimizer and
augmentation are the release's.
"""

BACKDOORBENCH = Protocol(
    name="BackdoorBench",
    # 1 normalised by the training images' own mean and std; up to 2 its network's convolutions were
    # initialised as a WRN's; up to 3 the training images' mean and std had other last bits; up to 4
    # signs were mirrored
    version=5,
    model="preactresnet18",
    recipe=Recipe(epochs=100, batch_size=128, lr=0.01, schedule="cosine", weight_decay=5e-4),
    normalise=True,
    overrides={
        # it mirrors no images but these
        "cifar10": {"normalise": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))},
        "cifar100": {
            **UNFLIPPED,
            "normalise": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        },
        # by plateaus of the loss there, which no other row of ours has
        "tiny_imagenet": {
            **UNFLIPPED,
            "normalise": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
            "recipe": Recipe(
                epochs=200, batch_size=128, lr=0.01, schedule="cosine", weight_decay=5e-4
            ),
        },
        "gtsrb": {
            **UNFLIPPED,
            "normalise": False,
            "recipe": Recipe(
                epochs=50, batch_size=128, lr=0.01, schedule="cosine", weight_decay=5e-4
            ),
        },
        "svhn": UNFLIPPED,
    },
)
"""BackdoorBench's prototype configuration (https://github.com/SCLBD/BackdoorBench)."""

FAST = Protocol(
    name="fast",
    model="fastnet",
    recipe=Recipe(
        epochs=10,
        batch_size=256,
        lr=0.4,
        schedule="one-cycle",
        nesterov=True,
        weight_decay=5e-4,
    ),
    crop=2,
    overrides={"gtsrb": {"target": 1, "flip": False}, "svhn": UNFLIPPED},
)
"""Ours: all of CIFAR-10 in minutes on a CPU and in seconds on a GPU; chosen on a part of the
training images that was not trained on (docs/fast.md).
"""

DEMO = replace(
    CBD,
    name="demo",
    model="cnn5",
    recipe=Recipe(epochs=6, batch_size=32, lr=0.03, schedule="one-cycle"),
    crop=2,
    flip=False,
    cutout=0,
    normalise=True,
    overrides={},
)
"""Ours, for trying things out: our digits in half a minute of a CPU core, as in the demo."""

PROTOCOLS = {"cbd": CBD, "mcci": MCCI, "backdoorbench": BACKDOORBENCH, "fast": FAST, "demo": DEMO}


def named(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        InputError: there is none.
    """
    if name not in PROTOCOLS:
        raise nearest(name, PROTOCOLS, "protocols")
    return PROTOCOLS[name]

"""The contracts: all that the author of an attack or a defense must read.

A method is a frozen dataclass in a file of its own; its fields are its hyper-parameters, made with
``option``. Images are uint8 (n, 3, h, w) between files and batches, float in [0, 1] inside a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final, get_type_hints

import torch
from torch import Tensor, nn

from .engine import Engine
from .errors import InputError
from .images import Images, Poisoned, derangement, in_parts, per_part, rows, scaled, to_uint8
from .models import Net

__all__ = [
    "Attack",
    "Defense",
    "Images",
    "InputError",
    "Method",
    "Poisoned",
    "Repair",
    "derangement",
    "labels",
    "option",
    "per_part",
    "scaled",
    "to_uint8",
    "training_controlled",
]

AnyAttack = TypeVar("AnyAttack", bound="Attack")


def option(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] = (),
    length: bool = False,
    later: bool = False,
) -> Any:
    """A hyper-parameter: its default, its meaning and unit, its allowed range (ends included) or
    choices; checked when made.

    Args:
        length: it is the length of a long training, which ``--scale`` shortens.
        later: it came when there were records already, and at its default changes nothing: specs
            have it only where it is set.
    """
    return field(
        default=default,
        metadata={
            "meaning": meaning,
            "low": low,
            "high": high,
            "choices": tuple(choices),
            "length": length,
            "later": later,
        },
    )


def _fits(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kinds = getattr(hint, "__args__", None)
    return any(_fits(value, kind) for kind in kinds) if kinds else isinstance(value, hint)


@dataclass(frozen=True)
class Method:
    """What attacks, defenses and executors have in common: checked options.

    Args:
        version: raised when the same options give other results.
        title: in tables and pictures; if empty, the file's name, in capitals if it is a defense.
        short: options that only shorten it, for a quick test.
    """

    version: ClassVar[int] = 1
    title: ClassVar[str] = ""
    short: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            rule = f.metadata
            low = rule.get("low")
            high = rule.get("high")
            choices = rule.get("choices")
            if not _fits(value, hints[f.name]):
                kind = getattr(hints[f.name], "__name__", str(hints[f.name]))
                raise ValueError(f"{f.name} must be {kind}, not {value!r}")
            if choices and value not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, not {value!r}")
            if (
                value is not None
                and not choices
                and ((low is not None and value < low) or (high is not None and value > high))
            ):
                raise ValueError(
                    f"{f.name} must lie in [{'-inf' if low is None else low}, "
                    f"{'inf' if high is None else high}], not {value!r}"
                )

    def spec(self) -> dict[str, Any]:
        """Every hyper-parameter with its value, and the version: what a record holds."""
        unsaid = {
            f.name
            for f in fields(self)
            if f.metadata.get("later") and getattr(self, f.name) == f.default
        }
        said = {name: value for name, value in asdict(self).items() if name not in unsaid}
        return said | {"version": self.version}


def labels(default: str = "all-to-one") -> Any:
    """The option ``label_mode`` of an attack."""
    meaning = (
        "all-to-one: any class, to the target; all-to-all: class y to y + 1; "
        "clean-label: the target class, unchanged"
    )
    return option(default, meaning, choices=("all-to-one", "all-to-all", "clean-label"))


def training_controlled() -> Any:
    """The option ``poisoning`` of attacks whose releases control the training."""
    meaning = (
        "fixed: a part of the training set, once; per-batch: a new choice in every batch of the "
        "victim's training, which the attacker controls: for defenses that start from the victim"
    )
    return option("fixed", meaning, choices=("fixed", "per-batch"), later=True)


@dataclass(frozen=True)
class Attack(Method, ABC):
    """Poisons a share of the training set so that triggered images go to the target label."""

    # trigger takes uint8 images, too, and gives what rounding would: ten times as fast
    takes_uint8: ClassVar[bool] = False
    label_mode: str = labels()

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        """For attacks that learn their trigger: what was learned, by name; kept as a file and given
        back as ``self.learned``.

        ``train`` is clean, ``engine.rules.target`` the target label; ``engine.victim`` trains or
        finds a network on clean images.
        """
        raise NotImplementedError

    @abstractmethod
    def trigger(self, x: Tensor) -> Tensor:
        """Stamp float images (n, 3, h, w) in [0, 1]; same shape, dtype and device, ``x`` untouched,
        the result in [0, 1].
        """

    def only_source(self, target: int, classes: int) -> int | None:
        """For attacks on the images of one class: the class; covers are then of others, and ASR and
        ARR count its test images alone.
        """
        return None

    @property
    def covers(self) -> float:
        """Cover images for each poisoned one, for attacks that define ``cover``."""
        return 0.0

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """What cover images get instead of the trigger: as ``trigger``; their labels stay. ``rng``
        is on the CPU.
        """
        raise NotImplementedError

    def refine(self, train: Images, poisoned: Poisoned, engine: Engine) -> Tensor:
        """For attacks whose training images are more than triggered: uint8 images in place of
        ``poisoned.x[poisoned.mask]``.
        """
        raise NotImplementedError

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
        """For attacks whose images are made elsewhere: the poisoned training set, without the
        images that are ``held`` back, and the triggered test images.

        Args:
            train: clean images; ``held`` bool (n,) are the clean reserve.
            test: clean images.
            target: the target label, ``rate`` the share of the training images to poison, ``rng``
                chooses them where the attack has not.
            folder: the attack's own, which stays.
            model: the protocol's network, by its name.
        """
        raise NotImplementedError

    def holds(self, n: int) -> Tensor | None:
        """For attacks that bring their clean reserve: which of ``n`` training images it is, bool
        (n,); otherwise it is the protocol's.
        """
        return None

    def victim(self, net: nn.Module, folder: Path) -> Mapping[str, Tensor] | None:
        """For attacks that bring the network that was trained on their images: its state as that of
        ``net``; otherwise ours is trained on them. ``folder`` is what ``supply`` was given.
        """
        return None

    def check(self, x: Tensor) -> None:
        """Raise InputError if images like ``x``, float (1, 3, h, w), cannot carry the trigger;
        called before any training.
        """
        if not (self.learns or self.supplies):
            self.trigger(x)

    @property
    @final
    def per_batch(self) -> bool:
        """Whether images are poisoned anew in every batch of a training that the attacker
        controls.
        """
        return getattr(self, "poisoning", "fixed") == "per-batch"

    @property
    def trains_itself(self) -> bool:
        """Whether there is no poisoned training set, the attacker controls the training: only for
        defenses that start from the victim.
        """
        return self.per_batch

    @property
    def learns(self) -> bool:
        """Whether the trigger is learned by ``fit``, and so costs a training."""
        return type(self).fit is not Attack.fit

    @property
    def refines(self) -> bool:
        """Whether the poisoned training images are made by ``refine``."""
        return type(self).refine is not Attack.refine

    @property
    def supplies(self) -> bool:
        """Whether the images come from ``supply``, and there is no ``trigger`` to call."""
        return type(self).supply is not Attack.supply

    @property
    @final
    def learned(self) -> Mapping[str, Tensor]:
        """What ``fit`` returned."""
        if "_learned" not in vars(self):
            raise InputError(f"{type(self).__name__} learns its trigger: fit it first")
        tensors: Mapping[str, Tensor] = vars(self)["_learned"]
        return tensors

    def seeded(self: AnyAttack, seed: int) -> AnyAttack:
        """A copy whose option ``seed``, where it has one that is not set, is the cell's."""
        unset: dict[str, Any] = {"seed": seed} if getattr(self, "seed", 0) is None else {}
        return replace(self, **unset)

    @final
    def fitted(self: AnyAttack, learned: Mapping[str, Tensor]) -> AnyAttack:
        """A copy that has learned this."""
        copy = replace(self)
        vars(copy)["_learned"] = learned
        return copy

    @final
    def goal(self, y: Tensor, target: int, classes: int) -> Tensor:
        """The label the attacker wants for triggered images of true class ``y`` (n,)."""
        return (y + 1) % classes if self.label_mode == "all-to-all" else torch.full_like(y, target)

    @final
    def stamp(self, x: Tensor) -> Tensor:
        """The trigger on uint8 images (n, 3, h, w), computed in float and rounded back, unless the
        trigger takes them as they are.
        """
        if self.takes_uint8:
            return self.trigger(x)
        # what a core's cache holds, what fills a GPU: 64 and 8,192 images of 32 pixels
        pixels = 2**16 if x.device.type == "cpu" else 2**23
        return in_parts(self.trigger, x, per_part(pixels, x))

    @final
    def choose(
        self,
        train: Images,
        *,
        target: int,
        rate: float,
        rng: torch.Generator,
        spare_target: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Who is poisoned and who is cover: indices, int64.

        Raises:
            InputError: as in ``poison``.
        """
        if not 0 <= target < len(train.classes):
            raise InputError(
                f"target {target} is no class: target must lie in [0, {len(train.classes) - 1}]"
            )
        if not 0 < rate <= 1:
            raise InputError(f"poisoning rate must lie in (0, 1], not {rate:g}")
        source = self.only_source(target, len(train.classes))
        if source is not None and (source == target or source >= len(train.classes)):
            raise InputError(
                f"source {source} must be a class in [0, {len(train.classes) - 1}] other than the "
                f"target {target}"
            )
        if source is not None:
            pool = (train.y == source).nonzero().flatten()
        elif self.label_mode == "clean-label":
            pool = (train.y == target).nonzero().flatten()
        elif spare_target and self.label_mode != "all-to-all":
            pool = (train.y != target).nonzero().flatten()
        else:
            pool = torch.arange(len(train), device=train.y.device)
        n = 0 if self.label_mode == "none" else round(rate * len(train))
        if n == 0 and self.label_mode != "none":
            raise InputError(
                f"poisoning rate {rate:g} poisons none of {len(train)} images: give at least "
                f"{1 / len(train):.2g}"
            )
        if n > len(pool):
            raise InputError(
                f"poisoning rate {rate:g} asks for {n} images, but only {len(pool)} of "
                f"{len(train)} may be poisoned ({self.label_mode})"
            )
        chosen = pool[torch.randperm(len(pool), generator=rng)[:n].to(pool.device)]
        covers = round(self.covers * n)
        if n + covers > len(train):
            raise InputError(
                f"poisoning rate {rate:g} asks for {n} poisoned and {covers} cover images, there "
                f"are {len(train)}"
            )
        others = torch.ones(len(train), dtype=torch.bool, device=pool.device)
        others[chosen] = False
        if source is not None:
            others &= (train.y != source) & (train.y != target)
        rest = others.nonzero().flatten()
        return chosen, rest[torch.randperm(len(rest), generator=rng)[:covers].to(pool.device)]

    @final
    def poison(
        self,
        train: Images,
        *,
        target: int,
        rate: float,
        rng: torch.Generator,
        spare_target: bool = False,
    ) -> Poisoned:
        """The poisoned training set, in the order of ``train``.

        Args:
            train: clean images.
            target: the target label.
            rate: poisoning rate, the share of *all* training images that is poisoned, in (0, 1].
            rng: CPU generator that chooses the images.
            spare_target: leave the target class out of the pool (clean-label attacks poison only
                that class; all-to-all has no such class).

        Raises:
            InputError: the target is no class, or the set holds fewer images than the rate asks
                for.
        """
        chosen, covers = self.choose(
            train, target=target, rate=rate, rng=rng, spare_target=spare_target
        )
        last = torch.channels_last
        x = train.x.clone(memory_format=last)
        y = train.y.clone()
        mask = torch.zeros_like(train.y, dtype=torch.bool)
        cover = mask.clone()
        rows(x).index_copy_(
            0, chosen, rows(self.stamp(train.pixels(chosen)).contiguous(memory_format=last))
        )
        y[chosen] = self.goal(train.y[chosen], target, len(train.classes))
        mask[chosen] = True
        if len(covers):
            x[covers] = self._covered(train.pixels(covers), rng)
            cover[covers] = True
        return Poisoned(x, y, train.classes, true=train.y, mask=mask, cover=cover)

    @final
    def poison_batch(
        self, x: Tensor, y: Tensor, rng: torch.Generator, *, target: int, rate: float, classes: int
    ) -> tuple[Tensor, Tensor]:
        """A batch of a training that the attacker controls: images uint8 (n, 3, h, w) in random
        order and their labels, a share ``rate`` of them with the trigger, then cover images.
        """
        n = round(rate * len(x))
        covers = min(round(self.covers * n), len(x) - n)
        first, second, rest = x.split((n, covers, len(x) - n - covers))
        goal = self.goal(y[:n], target, classes)
        # a single image has no other to take its cover from
        covered = self._covered(second, rng) if covers > 1 else second
        return torch.cat((self.stamp(first), covered, rest)), torch.cat((goal, y[n:]))

    def _covered(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Cover images uint8, made of ``x``; 1,024 of 32 pixels at a time, and never a single one,
        which would have no other.
        """
        size = max(2, per_part(2**20, x))
        while len(x) % size == 1 < len(x):
            size += 1
        return in_parts(lambda some: self.cover(some, rng), x, size)

    @final
    def test_set(self, test: Images, target: int) -> Poisoned:
        """Triggered test images whose true class is not already the attacker's goal: what ASR and
        ARR count.
        """
        goal = self.goal(test.y, target, len(test.classes))
        counted = goal != test.y
        source = self.only_source(target, len(test.classes))
        if source is not None:
            counted &= test.y == source
        kept = test[counted]
        goal = goal[counted]
        mask = torch.ones_like(goal, dtype=torch.bool)
        return Poisoned(self.stamp(kept.x), goal, test.classes, true=kept.y, mask=mask, cover=~mask)


@dataclass(frozen=True)
class Defense(Method, ABC):
    """Trains a model on a training set that may be poisoned."""

    # needs no training set: it starts from the victim, or is none
    after_training: ClassVar[bool] = False
    # somebody else's code that evaluates itself: it is given the test images as ``engine.tests``
    sees_tests: ClassVar[bool] = False

    @abstractmethod
    def fit(self, train: Images, engine: Engine) -> nn.Module:
        """The defended model: float images (n, 3, h, w) in [0, 1] -> logits (n, classes), in eval
        mode.

        Training loops over ``engine.steps``, or is ``engine.fit``, so that a killed run can go on.
        """

    def check(self, net: Net, x: Tensor) -> None:
        """Raise InputError if a network like the protocol's, in evaluation mode, or images like
        ``x``, float (2, 3, h, w), do not suit; called before any training.
        """

    @property
    def clean_images(self) -> int | None:
        """How many clean images it will ask of ``engine.clean``, None for all of the reserve;
        checked before any training.
        """
        return 0

    @property
    def clean_per_class(self) -> int:
        """How many clean images of every class it will ask of ``engine.clean_per_class``."""
        return 0

    def finish(self, net: nn.Module, engine: Engine) -> nn.Module:
        """What happens after training, for methods whose options act only then; ``net`` is what
        ``fit`` returned.
        """
        return net

    def training_spec(self) -> dict[str, Any]:
        """The part of ``spec`` that decides what ``fit`` returns: cells in which it is equal are
        trained once.
        """
        return self.spec()


@dataclass(frozen=True)
class Repair(Defense):
    """A defense that works on clean images, on all of the reserve unless told."""

    after_training: ClassVar[bool] = True

    images: int | None = option(
        None, "clean images; if not set, the protocol's whole reserve", low=1
    )

    @property
    def clean_images(self) -> int | None:
        return self.images

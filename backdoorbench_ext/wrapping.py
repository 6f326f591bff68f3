"""Attacks that change another attack, which their option ``base`` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import registry
from .api import Attack, option
from .engine import Engine
from .errors import InputError
from .images import Images

AnyWrapped = TypeVar("AnyWrapped", bound="WrappedAttack")


@dataclass(frozen=True)
class WrappedAttack(Attack):
    """What is the base's stays the base's: its labels, what it learns, its cover images. A subclass
    writes ``trigger`` or ``refine``.
    """

    label_mode: str = option(
        "as base",
        "which images are poisoned: the base's option decides",
        choices=("as base", "all-to-one", "all-to-all", "clean-label"),
    )
    base: str = option("badnets", "the attack that is changed, with its options")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.refines:
            raise InputError(
                f"base {self.base!r} makes its training images itself and cannot be changed; take "
                "another attack"
            )
        object.__setattr__(self, "label_mode", self.inner.label_mode)

    def seeded(self: AnyWrapped, seed: int) -> AnyWrapped:
        if self._made.seeded(seed) == self._made:
            return self
        name, options = registry.parse(self.base)
        return replace(self, base=registry.join(name, options | {"seed": seed}))

    @cached_property
    def _made(self) -> Attack:
        made: Attack = registry.create("attacks", self.base)
        return made

    @property
    def inner(self) -> Attack:
        """The base, with what it has learned."""
        return (
            self._made.fitted(self.learned)
            if self._made.learns and "_learned" in vars(self)
            else self._made
        )

    def spec(self) -> dict[str, Any]:
        return super().spec() | {
            "base": {"name": registry.parse(self.base)[0], **self.inner.spec()}
        }

    @property
    def learns(self) -> bool:
        return self.inner.learns

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        return self.inner.fit(train, engine)

    def check(self, x: Tensor) -> None:
        self.inner.check(x)

    def trigger(self, x: Tensor) -> Tensor:
        return self.inner.trigger(x)

    def only_source(self, target: int, classes: int) -> int | None:
        return self.inner.only_source(target, classes)

    @property
    def covers(self) -> float:
        return self.inner.covers

    def cover(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return self.inner.cover(x, rng)

"""What a machine can do that must be tried out before it is counted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import registry
from .engine import Engine
from .images import Images
from .protocols import Protocol, Recipe

CLASSES = 4
OPTIMIZERS = ("sgd", "adam", "adadelta")
RULES = Protocol(
    name="trial",
    model="cnn5",
    recipe=Recipe(epochs=2, batch_size=16, lr=0.01, schedule="one-cycle"),
)
# how far replayed weights may be from run ones: this share, and as many times what a second run is
NEAR = 1e-3
TIMES = 5


@dataclass(frozen=True)
class Trial:
    """How far the weights of a training are apart, as a share of their length: replayed from run,
    and run from run again; ``error``: what was raised.
    """

    what: str
    replayed: float = 0.0
    again: float = 0.0
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and self.replayed < NEAR + TIMES * self.again

    def __str__(self) -> str:
        if self.error:
            return f"{self.what}: {self.error}"
        apart = f"replayed {self.replayed:.1e} apart, run again {self.again:.1e}"
        return f"{self.what}: {apart}{'' if self.passed else ', which is too far'}"


def replays(device: torch.device, tell: Callable[[Trial], None]) -> bool:
    """Whether trainings whose steps are replayed as CUDA graphs end where others do: every defense
    at its shortest, by every optimizer. ``tell`` is given each trial.
    """
    passed = True
    for name in registry.modules("defenses"):
        for optimizer in OPTIMIZERS:
            trial = _try(name, optimizer, device)
            tell(trial)
            passed = passed and trial.passed
    return passed


def _try(name: str, optimizer: str, device: torch.device) -> Trial:
    what = f"{name} by {optimizer}"
    try:
        run, replayed, again = (
            _weights(name, optimizer, device, on) for on in (False, True, False)
        )
    # whatever a driver brings about: it is what is asked for
    except Exception as error:
        return Trial(what, error=f"{type(error).__name__}: {error}")
    return Trial(what, _apart(run, replayed), _apart(run, again))


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((other - one).norm() / one.norm())


def _weights(name: str, optimizer: str, device: torch.device, replaying: bool) -> torch.Tensor:
    """All that a defense has learned, as one vector."""
    rules = replace(RULES, recipe=replace(RULES.recipe, optimizer=optimizer))
    rng = torch.Generator().manual_seed(0)
    images, reserve = (
        Images(
            torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng),
            torch.arange(n) % CLASSES,
            tuple(map(str, range(CLASSES))),
        ).to(device)
        for n in (160, 80)
    )
    engine = Engine(rules, images, reserve, seed=3, device=device)
    engine.replays = replaying
    # float32: what is told apart is the order of the sums
    engine.bf16 = False
    kind: Any = registry.get_class("defenses", name)
    short: Mapping[str, Any] = getattr(kind, "short", {})
    net = kind(**short).fit(images, engine)
    learned = [value.float().flatten() for value in net.state_dict().values()]
    return torch.cat(learned)

"""ABL, anti-backdoor learning: find some poisoned images by how fast they are learned, and unlearn
them.

Li, Lyu, Koren, Lyu, Li, Ma: "Anti-Backdoor Learning: Training Clean Models on Poisoned Data",
NeurIPS 2021, https://arxiv.org/abs/2110.11571. Released code: https://github.com/bboylyg/ABL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Defense, Images, option
from backdoorbench_ext.engine import Engine, Loss


@dataclass(frozen=True)
class ABL(Defense):
    """1. Train with local gradient ascent, which keeps the loss around ``gamma``, and isolate the
    share of the images with the lowest loss. 2. Train on the rest. 3. Raise the loss of the
    isolated images (the paper lowers that of as many of the rest meanwhile). An epoch of that is a
    pass over the isolated images, as in every implementation and as CBD's and MCCI's papers
    describe it: 140 steps in all on CIFAR-10 in batches of 64.

    Equation 4 reads as if each sample's loss were held at gamma. Then a poisoned sample that is
    learned first cannot fall below the others, and what is isolated is clean
    (docs/results/defenses.md). The released code holds the mean of a batch, as we do unless told.

    Steps 1 and 3 take images as they are, as the released code does (BackdoorBench augments those
    of step 3), and step 2 augments them: under a crop by 4 pixels, which leaves a patch in the
    corner whole in a third of its images, that is learned after the classes, and what is isolated
    is clean. Step 2 follows the protocol's schedule; the release has 40 epochs at 0.1 and 20 at
    0.01.

    Part of what step 3 does is done by BatchNorm's running statistics alone, in the release as
    here: the record's probe "BatchNorm settled" is the network with these taken anew.

    variant="release": flooding in place of local gradient ascent, by its own default; half as long
    an isolation; the loss of the isolated images is raised alone. Not followed there: one fixed
    order of the images while isolating, CA without the target class.
    """

    short: ClassVar[Mapping[str, Any]] = {
        "isolation_epochs": 1,
        "epochs": 1,
        "unlearning_epochs": 1,
    }

    # 1 had 14,000 steps of unlearning, passes over the rest; 2 augmented images while isolating and
    # unlearning
    version: ClassVar[int] = 3
    variant: str = option("paper", "whose rules", choices=("paper", "release"))
    isolation_epochs: int | None = option(
        None, "epochs of step 1; if not set, 20 (paper) or 10 (release)", low=1, length=True
    )
    epochs: int = option(60, "of step 2", low=1, length=True)
    unlearning_epochs: int | None = option(
        None, "of step 3; if not set, 20 (paper) or 4 (release)", low=1
    )
    gamma: float = option(0.5, "the loss that local gradient ascent and flooding hold", low=0)
    holds: str = option(
        "batch",
        "whose loss that is: the mean of a batch, or each sample's",
        choices=("batch", "sample"),
    )
    isolated: float = option(0.01, "share of the images that is isolated", low=0, high=1)
    unlearning_lr: float | None = option(
        None,
        "learning rate of step 3; if not set, 1e-4 (paper, as CBD has it) or 5e-4 (release)",
        low=0,
    )

    def __post_init__(self) -> None:
        defaults = {
            "isolation_epochs": (20, 10),
            "unlearning_epochs": (20, 4),
            "unlearning_lr": (1e-4, 5e-4),
        }
        for name, (paper, release) in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, paper if self.variant == "paper" else release)
        super().__post_init__()

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        assert self.unlearning_lr is not None
        released = self.variant == "release"
        net = engine.new_model()
        rules = engine.rules.recipe

        def held(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            losses = F.cross_entropy(
                net(x), y, reduction="mean" if self.holds == "batch" else "none"
            )
            return (flooding if released else local_gradient_ascent)(losses, self.gamma)

        constant = replace(rules, schedule="constant")
        losses = held_losses(net, train, engine, self.isolation_epochs, held)
        low = isolate(losses, self.isolated)
        rest = torch.ones(len(train), dtype=torch.bool, device=low.device)
        rest[low] = False
        engine.suspect("isolation", -losses, ~rest)
        suspects = train[low]
        others = train[rest]
        engine.fit(net, others, name="training", epochs=self.epochs)

        def unlearning(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if released:
                return -F.cross_entropy(net(x), y)
            index = torch.randint(len(others), (len(x),), generator=engine.rng).to(
                x.device, non_blocking=True
            )
            # in one pass, so that BatchNorm sees both
            out = net(torch.cat((x, engine.to_float(others.x[index]))))
            return F.cross_entropy(out[len(x) :], others.y[index]) - F.cross_entropy(
                out[: len(x)], y
            )

        recipe = replace(constant, optimizer="sgd", lr=self.unlearning_lr)
        return engine.fit(
            net,
            suspects,
            name="unlearning",
            epochs=self.unlearning_epochs,
            loss=unlearning,
            recipe=recipe,
            augmented=False,
        )


def held_losses(
    net: nn.Module, train: Images, engine: Engine, epochs: int | None, held: Loss
) -> Tensor:
    """Train at the constant first rate on images as they are, and tell each one's loss: (n,)."""
    constant = replace(engine.rules.recipe, schedule="constant")
    engine.fit(
        net,
        train,
        name="isolation",
        epochs=epochs,
        loss=held,
        recipe=constant,
        augmented=False,
        recordable=True,
    )
    return F.cross_entropy(engine.predict(net, train), train.y, reduction="none")


def local_gradient_ascent(losses: Tensor, gamma: float) -> Tensor:
    """Equation 4 (LGA): mean of sign(l - gamma) l, so that losses below gamma are raised; (n,), or
    one, -> scalar.
    """
    return ((losses.detach() - gamma).sign() * losses).mean()


def flooding(losses: Tensor, gamma: float) -> Tensor:
    """Mean of |l - gamma| + gamma (Ishida et al. 2020, https://arxiv.org/abs/2002.08709); (n,), or
    one, -> scalar.
    """
    return (losses - gamma).abs().mean() + gamma


def isolate(losses: Tensor, share: float) -> Tensor:
    """Indices of the ``share`` of samples with the lowest losses, at least one."""
    return losses.argsort()[: max(1, round(share * len(losses)))]

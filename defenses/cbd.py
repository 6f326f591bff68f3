"""CBD: train a network that is backdoored on purpose, then a clean one away from it.

Zhang, Liu, Wang, Lu, Hu: "Backdoor Defense via Deconfounded Representation Learning", CVPR 2023,
https://arxiv.org/abs/2303.06818. Released code: https://github.com/zaixizhang/CBD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from backdoorbench_ext.api import Defense, Images, option
from backdoorbench_ext.engine import Engine, descend
from backdoorbench_ext.models import Net


@dataclass(frozen=True)
class CBD(Defense):
    """Equations 6-8 and algorithm 1: f_B is trained first and stopped early; then, in every
    iteration, the discriminator, the weights of the samples, and f_C on weighted cross-entropy +
    adversarial term + beta ||z||^2.

    variant="normalised" are the equations with the weights of equation 6 divided by their mean in
    the batch and the adversarial term at 0.01. As printed the weights, at most 1, scale the
    cross-entropy down and the term not, which asks f_C to know nothing of what f_B knows, classes
    among it: f_C then hardly learns, unless f_B is stopped before it has learned the classes
    (docs/results/gtsrb-full.md, docs/results/fast-cbd-equations.md).

    variant="release" is what the released code runs: weights divided by their mean in the batch, no
    ||z||^2, and the adversarial term off unless ``adversarial`` is set (0.01 there); then with
    dropout 0.2, fake pairs by rolling the batch and Adam at 0.2 instead of spectral normalisation.
    Not followed there: its extra pass an epoch for the discriminator alone (it is trained in the
    same pass here) and its division of all of the discriminator's parameters by the square root of
    their norm. The paper has embeddings r and z of 64 numbers, which other networks than WRN-16-1
    have not. The paper does not say how the discriminator is optimised: Adam at 1e-3 is ours. So
    is t1_schedule="one-cycle", for short trainings: at a constant rate the loss of poisoned samples
    under f_B still jumps when T1 ends, and the weights with it (docs/results/demo.md). So is
    "protocol": f_B is ordinary training that stops after T1. With the paper's schedule that is
    "constant"; with a one-cycle protocol, whose rate rises to its highest, it is not.
    """

    short: ClassVar[Mapping[str, Any]] = {"t1_steps": 2}

    # section 5.1, by 5-fold cross-validation: bbx tune cbd
    TUNED: ClassVar[Mapping[str, Any]] = {"t1": (3, 5, 8), "beta": (1e-5, 1e-4, 1e-3)}

    variant: str = option("paper", "whose rules", choices=("paper", "normalised", "release"))
    t1: int = option(5, "length of f_B's training in epochs; the paper searches 3, 5, 8", low=1)
    t1_steps: int | None = option(
        None, "the same in batches, in place of t1: the paper's epochs have 782", low=1, length=True
    )
    t1_schedule: str = option(
        "constant",
        "the learning rate during T1: constant, as in the paper, whose first drop comes later; a "
        "cycle of its own; or the protocol's own, stopped after T1",
        choices=("constant", "one-cycle", "protocol"),
    )
    beta: float | None = option(
        None,
        "weight of ||z||^2; the paper searches 1e-5, 1e-4, 1e-3; if not set, 1e-4, release 0",
        low=0,
    )
    adversarial: float | None = option(
        None, "weight of the adversarial term; if not set, 1, normalised 0.01, release 0", low=0
    )
    critic_lr: float | None = option(
        None, "learning rate of the discriminator; if not set, 1e-3, release 0.2", low=0
    )

    def __post_init__(self) -> None:
        defaults = {
            "paper": {"beta": 1e-4, "adversarial": 1.0, "critic_lr": 1e-3},
            "normalised": {"beta": 1e-4, "adversarial": 0.01, "critic_lr": 1e-3},
            "release": {"beta": 0.0, "adversarial": 0.0, "critic_lr": 0.2},
        }
        for name, default in defaults.get(self.variant, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        super().__post_init__()

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        assert self.beta is not None and self.adversarial is not None and self.critic_lr is not None
        released = self.variant == "release"
        biased = engine.new_model()
        stopped = self.t1_schedule == "protocol"
        recipe = engine.rules.recipe
        engine.fit(
            biased,
            train,
            name="f_B",
            epochs=self.t1,
            steps=self.t1_steps,
            of_epochs=recipe.epochs if stopped else None,
            recipe=recipe if stopped else replace(recipe, schedule=self.t1_schedule),
        )
        biased.requires_grad_(False)
        engine.probe("f_B", biased)
        clean = engine.new_model()
        optimizer = engine.optimizer(clean)
        critic = discriminator(2 * clean.num_features, released).to(engine.device)
        critic_optimizer = torch.optim.Adam(
            critic.parameters(), self.critic_lr, capturable=engine.replays
        )
        beta = self.beta
        adversarial = self.adversarial

        def learn(x: Tensor, y: Tensor, order: Tensor) -> Tensor:
            with engine.autocast():
                r = biased.features(x)
                z = clean.features(x)
                shuffled = r[order]
                if adversarial:
                    descend(critic_optimizer, -dependence(critic, z.detach(), r, shuffled))
                ce_biased = F.cross_entropy(biased.head(r), y, reduction="none")
                ce_clean = F.cross_entropy(clean.head(z), y, reduction="none")
                w = weights(ce_biased, ce_clean.detach(), normalised=self.variant != "paper")
                loss = (w * ce_clean).mean() + beta * z.float().square().sum(1).mean()
                if adversarial:
                    loss = loss + adversarial * dependence(critic, z, r, shuffled)
            descend(optimizer, loss)
            return loss.detach()

        recorded = engine.recorded(learn)
        for step in engine.steps("f_C", train, keep=(clean, optimizer, critic, critic_optimizer)):
            step.loss = recorded(step.x, step.y, partners(step.y, released))
        self.tell(biased, clean, train, engine)
        return clean

    def tell(self, biased: Net, clean: Net, train: Images, engine: Engine) -> None:
        """What equation 6 makes of each image in the end: the lower its weight, the more suspect;
        below one half f_B knows it better than f_C does.
        """
        ce_biased, ce_clean = (
            F.cross_entropy(engine.predict(net, train), train.y, reduction="none")
            for net in (biased, clean)
        )
        w = weights(ce_biased, ce_clean)
        engine.suspect("weights", -w, w < 0.5)


def partners(y: Tensor, released: bool) -> Tensor:
    """Whose r stands beside whose z in fake pairs, int64 (n,): in a random order, drawn on the CPU
    as all chance, or the one before.
    """
    order = torch.arange(len(y)).roll(1) if released else torch.randperm(len(y))
    return order.to(y.device, non_blocking=True)


def weights(ce_biased: Tensor, ce_clean: Tensor, normalised: bool = False) -> Tensor:
    """Equation 6: near 0 for samples that f_B has learnt, near 1 for those it has not; (n,) ->
    (n,). ``normalised``: to mean 1.
    """
    w = ce_biased / (ce_biased + ce_clean + 1e-8)
    return w / w.mean() if normalised else w


def discriminator(inputs: int, released: bool) -> nn.Sequential:
    """A two-layer perceptron on concatenated pairs (n, inputs) -> score (n, 1)."""
    first = nn.Linear(inputs, inputs // 2)
    last = nn.Linear(inputs // 2, 1)
    if released:
        return nn.Sequential(nn.Dropout(0.2), first, nn.LeakyReLU(), nn.Dropout(0.2), last)
    return nn.Sequential(spectral_norm(first), nn.LeakyReLU(), spectral_norm(last))


def dependence(critic: nn.Module, z: Tensor, r: Tensor, shuffled: Tensor) -> Tensor:
    """Equation 7: how much higher the critic scores true pairs (z, r) than pairs with ``r``
    shuffled in the batch; scalar.
    """
    real = critic(torch.cat((z, r), 1))
    fake = critic(torch.cat((z, shuffled), 1))
    gap: Tensor = real.float().mean() - fake.float().mean()
    return gap

"""NAD, neural attention distillation: the victim learns to look where its fine-tuned copy looks.

Li, Lyu, Koren, Lyu, Li, Ma: "Neural Attention Distillation: Erasing Backdoor Triggers from Deep
Neural Networks", ICLR 2021, https://arxiv.org/abs/2101.05930. Released code:
https://github.com/bboylyg/NAD, which has beta 500, 1000, 1000 for the three stages of WRN-16-1, and
whose learning rate falls once, as BackdoorBench's; the paper's text has it fall every two epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Images, Repair, option
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.models import Net, Watch, last_stages

# of WRN-16-1's maps at 32 pixels
CELLS = (32**2, 16**2, 8**2)


@dataclass(frozen=True)
class NAD(Repair):
    """Teacher: the victim fine-tuned on clean images. Student: the victim, on cross-entropy and the
    distance of the attention maps of its last three resolutions from the teacher's. The learning
    rate falls tenfold after a fifth of each part, as in the release.

    Maps are unit vectors, and in the paper (equation 2) their distance does not depend on how many
    cells they have. The release takes the mean over the cells, and its weights belong to the maps
    of WRN-16-1 at 32 pixels. On a network with fewer cells that mean would weigh several times as
    much, and destroys the student. So the weights are those of WRN-16-1's maps on every network.
    """

    short: ClassVar[Mapping[str, Any]] = {"epochs": 1, "teacher_epochs": 1}

    # 1 let the rate fall every fifth, to 1e-5, and compared pre-activation networks behind the next
    # stage's norm; 2 took the mean over the cells of any network's maps, the same for WRN-16-1
    version: ClassVar[int] = 3
    teacher_epochs: int = option(10, "of the teacher's fine-tuning", low=1)
    epochs: int = option(10, "of distillation", low=1)
    lr: float = option(0.1, "learning rate of both at the start", low=0)
    beta1: float = option(
        500.0, "weight of the distance at the highest of the three resolutions", low=0
    )
    beta2: float = option(1000.0, "at the middle one", low=0)
    beta3: float = option(1000.0, "at the lowest", low=0)
    p: float = option(2.0, "power of the activations in the attention map", low=1)

    def check(self, net: Net, x: Tensor) -> None:
        last_stages(net, x)

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        clean = engine.clean(self.images)
        student = engine.victim()
        names = last_stages(student, engine.to_float(clean.x[:2]))
        teacher = copy.deepcopy(student)
        recipe = replace(
            engine.rules.recipe,
            optimizer="sgd",
            lr=self.lr,
            schedule="step",
            milestones=(0.2,),
        )
        engine.fit(teacher, clean, name="teacher", epochs=self.teacher_epochs, recipe=recipe)
        teacher.requires_grad_(False)
        engine.probe("teacher", teacher)
        taught = Watch(teacher, names)
        learned = Watch(student, names)
        betas = (self.beta1, self.beta2, self.beta3)[-len(names) :]

        def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            teacher(x)
            total = F.cross_entropy(net(x), y)
            for name, beta, cells in zip(names, betas, CELLS[-len(names) :], strict=True):
                total = total + beta * distance(
                    attention(learned.seen[name], self.p),
                    attention(taught.seen[name], self.p),
                    cells,
                )
            return total

        engine.fit(
            student, clean, name="distillation", epochs=self.epochs, loss=loss, recipe=recipe
        )
        taught.end()
        learned.end()
        return student


def attention(activations: Tensor, p: float) -> Tensor:
    """Where a layer looks: mean over channels of |a|^p, as a vector of length 1; (n, c, h, w) ->
    (n, h * w).
    """
    return F.normalize(activations.float().abs().pow(p).mean(1).flatten(1))


def distance(a: Tensor, b: Tensor, cells: int) -> Tensor:
    """The squared distance of vectors (n, d), over so many ``cells``: its mean over the images,
    scalar.
    """
    return F.mse_loss(a, b) * (a.shape[1] / cells)

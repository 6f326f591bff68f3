"""Spectral signatures: in each class, images that stand out along the direction in which embeddings
vary most are taken for poisoned and left out.

Tran, Li, Madry: "Spectral Signatures in Backdoor Attacks", NeurIPS 2018,
https://arxiv.org/abs/1811.00636. The paper leaves out one and a half times as many images of a
class as it takes to be poisoned, at most; a defender knows neither that number nor the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from backdoorbench_ext.api import Defense, Images, option
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class SpectralSignatures(Defense):
    """A detector: the victim's embeddings, the suspects of every class, and a training without
    them.
    """

    title: ClassVar[str] = "Spectral"

    removed: float = option(0.15, "share of each class that is left out", low=0, high=0.9)

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        victim = engine.victim()
        z = engine.predict(victim, train, victim.features)
        scores = torch.zeros(len(train), device=z.device)
        flagged = torch.zeros(len(train), dtype=torch.bool, device=z.device)
        for label in range(len(train.classes)):
            own = (train.y == label).nonzero().flatten()
            if not len(own):
                continue
            scores[own] = outlying(z[own])
            highest = scores[own].argsort(descending=True)[: round(self.removed * len(own))]
            flagged[own[highest]] = True
        engine.suspect("signature", scores, flagged)
        kept = train[~flagged]
        return engine.fit(engine.new_model(), kept, name="training without suspects")


def outlying(z: Tensor) -> Tensor:
    """The squared projection of each centred embedding, (n, d) -> (n,), on the first singular
    vector.
    """
    centred = z.double() - z.double().mean(0)
    # of the covariance, which is small
    direction: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    projected: Tensor = centred @ direction
    return projected.square().float()

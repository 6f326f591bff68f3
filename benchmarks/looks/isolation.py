"""Whom ABL would isolate after each epoch: ``python -m benchmarks.looks.isolation cbd_table1
'cifar10 badnets abl' --scale 0.4 --data DIR``.

Printed are, for each length of the isolation, how many percent of the isolated images are poisoned,
and the median losses of poisoned and of clean images. A defense cannot see who is poisoned.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.defenses.abl import ABL, isolate, local_gradient_ascent
from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.lab import Lab

from .cell import asked, lab_of


def look(lab: Lab, epochs: int, method: ABL) -> list[tuple[float, float, float]]:
    """Percent of the isolated that are poisoned, median losses of poisoned and of clean images, for
    each epoch. The optimizer's momentum starts anew in every epoch.
    """
    engine = lab.engine()
    train = lab.poisoned.observed()
    net = engine.new_model()
    recipe = replace(engine.rules.recipe, schedule="constant")
    reduction = "mean" if method.holds == "batch" else "none"

    def held(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return local_gradient_ascent(F.cross_entropy(net(x), y, reduction=reduction), method.gamma)

    rows = []
    for _ in range(epochs):
        engine.fit(net, train, epochs=1, recipe=recipe, augmented=False, loss=held)
        losses = F.cross_entropy(engine.predict(net, train), train.y, reduction="none")
        mask = lab.poisoned.mask
        share = mask[isolate(losses, method.isolated)].float().mean()
        numbers = (100 * share, losses[mask].median(), losses[~mask].median())
        rows.append((float(numbers[0]), float(numbers[1]), float(numbers[2])))
    return rows


@in_one_line()
def main() -> None:
    """Print a line an epoch."""
    parser = asked(__doc__)
    parser.add_argument("--isolation", type=int, default=8, help="epochs to look at")
    given = parser.parse_args()
    lab = lab_of(given)
    method = lab.defense if isinstance(lab.defense, ABL) else ABL()
    print(f"{'epoch':>6}{'poisoned, %':>13}{'their loss':>12}{'of clean':>10}")
    for epoch, (share, bad, clean) in enumerate(look(lab, given.isolation, method), 1):
        print(f"{epoch:6}{share:13.1f}{bad:12.2f}{clean:10.2f}")


if __name__ == "__main__":
    main()

"""CBD's figure 4: training losses of clean and of poisoned images, without defense, under six
attacks and under the adaptive attack on four of them.

``bbx plot losses`` draws it. ``cbd_premise`` shows the first epochs of the same alone, at a cost
that a CPU can pay.
"""

from dataclasses import replace

from .cbd_table1 import SUITE as TABLE
from .cbd_table5 import SUITE as ADAPTIVE

ATTACKS = tuple(attack for attack in TABLE.attacks if attack != "none") + ADAPTIVE.attacks
SUITE = replace(
    TABLE,
    name="cbd_figure4",
    datasets=("cifar10",),
    attacks=ATTACKS,
    defenses=("none",),
    leave_out=(),
    reported={},
    audit=True,
)

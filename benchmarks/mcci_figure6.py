"""MCCI's figure 6: how long each defense takes to a CA of 85 % with BadNets on CIFAR-10. ``bbx plot
learning`` draws CA over the seconds of training.

The paper's text: MCCI needs 24 to 215 % less time than its baselines. The defenses that it compares
with are not named; these are those of its table 1.
"""

from dataclasses import replace

from .mcci_table1 import SUITE as TABLE

SUITE = replace(
    TABLE,
    name="mcci_figure6",
    datasets=("cifar10",),
    attacks=("badnets",),
    defenses=tuple(defense for defense in TABLE.defenses if defense != "mcci[inference=sg]"),
    own_rates={},
    reported={},
    audit=True,
)

"""MCCI's figure 7: poisoning rates of 5 to 70 % with BadNets on CIFAR-10. Its text gives means over
the rates: AVG 82 CA, 1 ASR, 81 ARR; SG 82, 2, 81.
"""

from dataclasses import replace

from .mcci_table1 import SUITE as TABLE1

SUITE = replace(
    TABLE1,
    name="mcci_figure7",
    datasets=("cifar10",),
    attacks=("badnets",),
    defenses=("none", "mcci[inference=avg]", "mcci[inference=sg]"),
    rates=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    own_rates={},
    reported={},
)

"""MCCI's figures 4 and 5: how many clean images the mean spectrum needs, on CIFAR-10. One training
serves all counts.
"""

from dataclasses import replace

from .mcci_table1 import SUITE as TABLE1

SUITE = replace(
    TABLE1,
    name="mcci_figure4_5",
    datasets=("cifar10",),
    attacks=("badnets", "blend[alpha=0.2]", "wanet[noise=0]"),
    defenses=("none", *(f"mcci[images={k}]" for k in (1, 5, 10, 20, 50, 100, 200, 500))),
    own_rates={},
    reported={},
)

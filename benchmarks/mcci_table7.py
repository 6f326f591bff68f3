"""MCCI's table 7: the SFRN alone at inference (appendix M), on CIFAR-10."""

from dataclasses import replace

from .mcci_table1 import ATTACKS, CLEAN_LABEL
from .mcci_table1 import SUITE as TABLE1
from .published import wide

DEFENSES = {"none": "none", "sfrn": "mcci[inference=sfrn]"}
NUMBERS = wide("mcci_table7", "attack", ATTACKS, DEFENSES, factor=100)

SUITE = replace(
    TABLE1,
    name="mcci_table7",
    datasets=("cifar10",),
    defenses=tuple(DEFENSES.values()),
    reported={
        (d, a, f, CLEAN_LABEL.get(a, rate)): value for (d, a, f, rate), value in NUMBERS.items()
    },
)

"""CBD's table 2: poisoning rates of 1 to 50 % on CIFAR-10."""

from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .published import reported

# at 50 % there are no two noise samples a poisoned one
ATTACKS = {"BadNets": "badnets", "Trojan": "trojan", "Blend": "blend", "WaNet": "wanet[noise=0]"}
DEFENSES = {"none": "none", "cbd": "cbd"}

SUITE = Suite(
    name="cbd_table2",
    protocol=CBD,
    datasets=("cifar10",),
    attacks=tuple(ATTACKS.values()),
    defenses=tuple(DEFENSES.values()),
    rates=(0.01, 0.05, 0.2, 0.5),
    reported=reported("cbd_table2", ATTACKS, DEFENSES),
)

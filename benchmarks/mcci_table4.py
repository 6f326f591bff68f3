"""MCCI's table 4: its adaptive attack, BadNets' images blurred in three ways, on CIFAR-10."""

from backdoorbench_ext.protocols import MCCI
from backdoorbench_ext.suite import Suite

from .published import wide

ATTACKS = {
    "Averaging": "blurred[kernel=average]",
    "Gaussian": "blurred[kernel=gaussian]",
    "Median": "blurred[kernel=median]",
}
DEFENSES = {"none": "none", "avg": "mcci[inference=avg]", "sg": "mcci[inference=sg]"}

SUITE = Suite(
    name="mcci_table4",
    protocol=MCCI,
    datasets=("cifar10",),
    attacks=tuple(ATTACKS.values()),
    defenses=tuple(DEFENSES.values()),
    reported=wide("mcci_table4", "technique", ATTACKS, DEFENSES),
)

"""CBD's table 8: seconds of every defense with BadNets on CIFAR-10, on a V100. Defenses that repair
a victim count its training.
"""

from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .cbd_table1 import DEFENSES
from .published import reported

SUITE = Suite(
    name="cbd_table8",
    protocol=CBD,
    datasets=("cifar10",),
    attacks=("badnets",),
    defenses=tuple(DEFENSES.values()),
    reported=reported("cbd_time", {"BadNets": "badnets"}, DEFENSES),
)

"""CBD's table 3: seconds of a training without defense and with CBD, on a V100. ``table.csv`` has
ours; ``bbx table cbd_table3 --against reported`` both.
"""

from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .published import reported

ATTACKS = {"BadNets": "badnets", "Trojan": "trojan", "Blend": "blend", "WaNet": "wanet[noise=0]"}
DEFENSES = {"none": "none", "cbd": "cbd"}

SUITE = Suite(
    name="cbd_table3",
    protocol=CBD,
    datasets=("cifar10", "imagenette"),
    attacks=tuple(ATTACKS.values()),
    defenses=tuple(DEFENSES.values()),
    reported=reported("cbd_time", ATTACKS, DEFENSES),
)

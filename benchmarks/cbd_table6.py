"""CBD's table 6: WRN-40-1 on CIFAR-10."""

from dataclasses import replace

from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .published import reported

ATTACKS = {"BadNets": "badnets", "Trojan": "trojan", "Blend": "blend", "WaNet": "wanet[noise=0]"}
DEFENSES = {"none": "none", "cbd": "cbd"}

SUITE = Suite(
    name="cbd_table6",
    protocol=replace(CBD, name="CBD, wrn40_1", model="wrn40_1"),
    datasets=("cifar10",),
    attacks=tuple(ATTACKS.values()),
    defenses=tuple(DEFENSES.values()),
    reported=reported("cbd_table6", ATTACKS, DEFENSES),
)

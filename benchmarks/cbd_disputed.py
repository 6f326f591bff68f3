"""Who is right about CBD: its own paper has an average ASR of 1.60 on CIFAR-10 (WRN-16-1), MCCI's paper 30.49 (ResNet-18).

The paper's and the release's rules, here on WRN-16-1; ``--model resnet18_cifar`` is the other network under the same training.
"""

from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .published import reported

ATTACKS = {"BadNets": "badnets", "Trojan": "trojan", "Blend": "blend", "WaNet": "wanet"}

SUITE = Suite(
    name="cbd_disputed",
    protocol=CBD,
    datasets=("cifar10",),
    attacks=tuple(ATTACKS.values()),
    defenses=("none", "cbd", "cbd[variant=release]"),
    reported=reported("cbd_table1", ATTACKS, {"none": "none", "cbd": "cbd"}) | reported("cbd_table1", ATTACKS, {"cbd": "cbd[variant=release]"}),
)

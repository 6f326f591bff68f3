"""Who is right about CBD: its own paper has an average ASR of 1.60 on CIFAR-10 (WRN-16-1), MCCI's
paper 30.49 (ResNet-18).

The paper's and the release's rules on WRN-16-1, under four attacks as CBD's paper has them and
MCCI's stronger blend, beside CBD's numbers.
``cbd_disputed_resnet18`` is the same grid with the other network, beside MCCI's.
"""

from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .cbd_table6 import ATTACKS
from .published import reported

SUITE = Suite(
    name="cbd_disputed",
    protocol=CBD,
    datasets=("cifar10",),
    attacks=(*ATTACKS.values(), "blend[alpha=0.2]"),
    defenses=("none", "cbd", "cbd[variant=release]"),
    reported=reported("cbd_table1", ATTACKS, {"none": "none", "cbd": "cbd"})
    | reported("cbd_table1", ATTACKS, {"cbd": "cbd[variant=release]"}),
)

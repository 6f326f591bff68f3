"""CBD's table 5: the adaptive attack of section 5.3, adversarial noise on the poisoned images, on
CIFAR-10.
"""

from backdoorbench_ext.protocols import CBD
from backdoorbench_ext.suite import Suite

from .published import reported

ATTACKS = {
    name: f"adaptive_noise[base={base}]"
    for name, base in {
        "BadNets": "badnets",
        "Trojan": "trojan",
        "Blend": "blend",
        "WaNet": "wanet[noise=0]",
    }.items()
}
DEFENSES = {"none": "none", "cbd": "cbd"}

SUITE = Suite(
    name="cbd_table5",
    protocol=CBD,
    datasets=("cifar10",),
    attacks=tuple(ATTACKS.values()),
    defenses=tuple(DEFENSES.values()),
    reported=reported("cbd_table5", ATTACKS, DEFENSES),
)

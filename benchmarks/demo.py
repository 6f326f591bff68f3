"""Demo: the whole way on scikit-learn's digits, in minutes on two CPU cores.

It shows that poisoning, defending, measuring and tabulating meet, and what the two defenses do
where their assumptions hold: the trigger is learned long before the classes, and the frequency
spectrum shows the trigger but hardly the class. It is not a benchmark: the images are made by us so
that this is so, the triggers are larger than the papers' (5x5 pixels, alpha 0.2), the network is
small and the schedule short. No number of it says anything about photographs; see ``cifar10_small``
and the papers' grids.
"""

from backdoorbench_ext.protocols import DEMO
from backdoorbench_ext.suite import Suite

SUITE = Suite(
    name="demo",
    protocol=DEMO,
    datasets=("digits",),
    attacks=("badnets[size=5]", "blend[alpha=0.2]"),
    defenses=(
        "none",
        "cbd[variant=release,t1_steps=400,t1_schedule=one-cycle]",
        "mcci[lr=1.0,inference=avg]",
        "mcci[lr=1.0,inference=sg]",
    ),
)

"""Demo: the whole way on scikit-learn's digits, in minutes on two CPU cores.

It shows that poisoning, defending, measuring and tabulating meet, and what the two defenses do when their assumptions hold: the trigger is
learned long before the classes are. It is not a benchmark: the images are made by us so that this is so, the network is
small, the schedule short. No number of it says anything about photographs; see ``cifar10_small`` and the papers' grids.
"""

from dataclasses import replace

from backdoorbench_ext.protocols import CBD, Recipe
from backdoorbench_ext.suite import Suite

SUITE = Suite(
    name="demo",
    protocol=replace(CBD, name="demo", crop=2, flip=False, cutout=0, recipe=Recipe(epochs=5, batch_size=32, lr=0.1, schedule="one-cycle")),
    datasets=("digits",),
    attacks=("badnets", "blend"),
    defenses=("none", "cbd[t1_steps=300]", "mcci[inference=avg]", "mcci[inference=sg]"),
)

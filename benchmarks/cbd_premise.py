"""CBD's premise at full scale: f_B, trained plainly for T1 = 5 epochs at the constant first
learning rate, knows the backdoor and not yet the classes.

No Defense under exactly f_B's schedule, on all of CIFAR-10 and GTSRB: CA near chance and ASR near
100 is what CBD needs of it. ``--epochs 3`` and ``--epochs 8`` are the other lengths that the paper
searches. ``bbx plot losses`` draws what of clean and of poisoned images is learned when, the start
of the paper's figure 4.
"""

from dataclasses import replace

from backdoorbench_ext.protocols import Recipe

from .cbd_table1 import SUITE as TABLE


def stopped(recipe: Recipe) -> Recipe:
    return replace(recipe, epochs=5, schedule="constant")


RULES = TABLE.protocol
GTSRB = TABLE.protocol.overrides["gtsrb"]
SUITE = replace(
    TABLE,
    name="cbd_premise",
    protocol=replace(
        RULES,
        name="CBD's f_B",
        recipe=stopped(RULES.recipe),
        overrides={"gtsrb": {**GTSRB, "recipe": stopped(GTSRB["recipe"])}},
    ),
    datasets=("cifar10", "gtsrb"),
    attacks=tuple(attack for attack in TABLE.attacks if attack != "none"),
    defenses=("none",),
    leave_out=(),
    reported={},
    audit=True,
)

"""CBD's table 7: T2T-ViT on CIFAR-10.

The paper names neither the network's size nor a recipe for it. Ours are those of the work that it
cites (Liu et al. 2021, https://arxiv.org/abs/2106.03746): T2T-ViT-14, AdamW with a fifth of the
training to warm up, as CBD's SGD at 0.1 sends its loss far above that of guessing. Images stay at
32 pixels, theirs are scaled to 224; they train with MixUp, CutMix and RandAugment, which would mix
triggers.
"""

from dataclasses import replace

from backdoorbench_ext.protocols import CBD, Recipe

from .cbd_table6 import ATTACKS, DEFENSES
from .cbd_table6 import SUITE as TABLE6
from .published import reported

RECIPE = Recipe(
    epochs=100, batch_size=128, optimizer="adamw", lr=5e-4, schedule="one-cycle", weight_decay=0.05
)
SUITE = replace(
    TABLE6,
    name="cbd_table7",
    protocol=replace(CBD, name="CBD, t2t_vit_14", model="t2t_vit_14", recipe=RECIPE),
    reported=reported("cbd_table7", ATTACKS, DEFENSES),
)

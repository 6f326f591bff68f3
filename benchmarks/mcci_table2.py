"""MCCI's table 2, its first row: a pretrained ViT, fine-tuned on CIFAR-10 under BadNets. (CLIP's
data set and BLIP's task are not ours.)

The paper says "ViT (Dosovitskiy 2020)" and gives no recipe: the weights are that work's ViT-B/16 of
ImageNet-21k, fetched on first use; MCCI's own training is cut to 10 epochs; images are scaled to
224 pixels in front of the network, the AIN sees their spectrum at 32.
"""

from dataclasses import replace

from backdoorbench_ext.protocols import MCCI

from .mcci_table1 import SUITE as TABLE1
from .published import wide

DEFENSES = {"none": "none", "avg": "mcci[inference=avg]", "sg": "mcci[inference=sg]"}

SUITE = replace(
    TABLE1,
    name="mcci_table2",
    protocol=replace(
        MCCI,
        name="MCCI, ViT",
        model="vit_base_patch16_224.orig_in21k",
        # what the weights were trained with
        normalise=((0.5,) * 3, (0.5,) * 3),
        recipe=replace(MCCI.recipe, epochs=10),
        overrides={},
    ),
    datasets=("cifar10",),
    attacks=("badnets",),
    defenses=tuple(DEFENSES.values()),
    own_rates={},
    reported=wide("mcci_table2", "backbone", {"ViT": "badnets"}, DEFENSES),
)

"""MCCI's table 2, its rows of classifiers: a pretrained ViT on CIFAR-10 and CLIP's image encoder on
Fashion-MNIST, fine-tuned under BadNets. Its third row, BLIP, is ``backdoorbench_ext.vqa``.

The paper gives no recipe and names no weights ("Dosovitskiy 2020", "Radford 2021"). Here they are
ViT-B/16 of ImageNet-21k and OpenAI's CLIP ViT-B/16, fetched on first use; MCCI's own training is
cut to 10 epochs. The table says "Fashion-Products", appendix K Fashion-MNIST, and so do we. Images
are scaled to 224 pixels in front of the network, where the patch of 3 pixels is one of 21 (the
paper has 3 for the ViT and 22 for CLIP); the AIN sees their spectrum at 32.

Other weights of the same shape, for both rows:

    bbx run mcci_table2 --model 'vit_small_patch14_dinov2[img_size=224]' --weights FILE
"""

from dataclasses import replace

from backdoorbench_ext.protocols import MCCI

from .mcci_table1 import SUITE as TABLE1
from .published import wide

DEFENSES = {"none": "none", "avg": "mcci[inference=avg]", "sg": "mcci[inference=sg]"}
# what the weights were trained with
VIT = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
ROWS = {"cifar10": "ViT", "fashion_mnist": "CLIP"}

SUITE = replace(
    TABLE1,
    name="mcci_table2",
    protocol=replace(
        MCCI,
        name="MCCI, pretrained",
        model="vit_base_patch16_224.orig_in21k",
        normalise=VIT,
        recipe=replace(MCCI.recipe, epochs=10),
        overrides={
            # a mirrored shoe is one
            "fashion_mnist": {"model": "vit_base_patch16_clip_224.openai", "normalise": CLIP}
        },
    ),
    datasets=tuple(ROWS),
    attacks=("badnets",),
    defenses=tuple(DEFENSES.values()),
    own_rates={},
    reported={
        key: numbers
        for dataset, row in ROWS.items()
        for key, numbers in wide(
            "mcci_table2", "backbone", {row: "badnets"}, DEFENSES, dataset=dataset
        ).items()
    },
)

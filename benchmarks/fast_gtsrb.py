"""All of GTSRB under the protocol ``fast``, as ``fast_cifar10``; without LC and TUAP, whose
rate is a quarter of CIFAR-10's target class.

The data set is the one that ``--data`` holds; CBD's T1 counts the batches of the 26,640 images that
torchvision's has.
"""

from dataclasses import replace

from .fast_cifar10 import ATTACKS, REPAIRS, TRAINED, causal
from .fast_cifar10 import SUITE as CIFAR10

# of 26,640 images less the reserve
BATCHES = 25_308 // 256

SUITE = replace(
    CIFAR10,
    name="fast_gtsrb",
    datasets=("gtsrb",),
    attacks=tuple(name for name in ATTACKS if name not in CIFAR10.own_rates),
    defenses=("none", *REPAIRS, *TRAINED, *causal(BATCHES)),
    own_rates={},
)

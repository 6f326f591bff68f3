"""Poisoning rates of 0.5 to 20 % on all of CIFAR-10 under the protocol ``fast``: where defenses
lose sight of poisoned images, and where those that train clean models lose these.
"""

from dataclasses import replace

from .fast_cifar10 import BATCHES, REPAIRS, TRAINED, causal
from .fast_cifar10 import SUITE as CIFAR10

SUITE = replace(
    CIFAR10,
    name="fast_rates",
    attacks=("badnets", "blend"),
    defenses=("none", *REPAIRS[:4], TRAINED[0], *causal(BATCHES)),
    rates=(0.005, 0.01, 0.05, 0.1, 0.2),
    own_rates={},
)

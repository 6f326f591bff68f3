"""``attacks`` without augmentation, for patterns over the whole image that a flip turns into other
ones: how much of what does not take is due to it.
"""

from dataclasses import replace

from .attacks import SUITE as ATTACKS

SUITE = replace(
    ATTACKS,
    name="attacks_unflipped",
    protocol=replace(ATTACKS.protocol, name="CBD, short, unflipped", flip=False),
    attacks=("ftrojan", "lf", "ctrl"),
    own_rates={"ctrl": 0.05},
)

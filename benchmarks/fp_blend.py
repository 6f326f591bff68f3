"""Why fine-pruning removes Blend here and not in CBD's table 1: a fixed pattern, or noise of its
own for every image, as CBD's release has it.

The data, network and schedule of ``cifar10_small``, three seeds. ``docs/results/fp-blend.md`` reads
it; not to be compared with published tables.
"""

from backdoorbench_ext.suite import Suite

from .cifar10_small import SUITE as SMALL

SUITE = Suite(
    name="fp_blend",
    protocol=SMALL.protocol,
    datasets=SMALL.datasets,
    attacks=("blend", "blend[pattern=per-image]"),
    defenses=("none", "fp"),
    seeds=(0, 1, 2),
)

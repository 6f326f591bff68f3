"""BackdoorBench's own ANP, FT-SAM and CLP beside ours, by one ruler: all of CIFAR-10 under the
protocol ``fast``.

Its scripts work on our network here, which takes the place of their PreAct-ResNet-18. Cells without
BackdoorBench are those of ``fast_cifar10``.

ANP has its paper's rate of 0.2 and 200 batches on both sides. BackdoorBench has 0.01 and 2,000, so
masks can go twice as far here, in a tenth of the time; its paper has 0.2 and 2,000. FT-SAM has our
10 epochs on both sides, BackdoorBench's 100. CLP is as it is there. BackdoorBench's ANP chooses
what it saves by the test images.

It needs a checkout, ``BACKDOORBENCH_HOME``.
"""

from backdoorbench_ext.protocols import FAST
from backdoorbench_ext.suite import Suite

from .fast_cifar10 import BATCHES, causal

SUITE = Suite(
    name="with_backdoorbench",
    protocol=FAST,
    datasets=("cifar10",),
    attacks=("badnets", "blend", "wanet[noise=0]"),
    defenses=(
        "none",
        "nad",
        "anp[steps=200]",
        "backdoorbench:anp[lr=0.2,nb_iter=200,print_every=200]",
        "ft_sam",
        "backdoorbench:ft-sam[epochs=10]",
        "clp",
        "backdoorbench:clp",
        *(
            name
            for name in causal(BATCHES)
            if "release,t1_schedule=protocol" in name or "lr=1.0" in name
        ),
    ),
)

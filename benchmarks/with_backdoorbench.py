"""BackdoorBench's own ANP, FT-SAM and CLP beside ours, by one ruler.

4,000 training and 500 test images of CIFAR-10, a PreAct-ResNet-18, 6 epochs of small batches: two
hours of a CPU, and far from any paper's length. WaNet is twice as strong and without its noise
samples, so that it takes. CBD's T1 is counted in steps and MCCI's Adadelta runs at 1.0, as in
``cifar10_small``, whose flip without a crop it shares, too.

What is cut short of BackdoorBench's scripts stands in their flags: ANP's 2,000 iterations are 20,
FT-SAM's 100 epochs 5. ANP chooses what it saves by the test images.

It needs a checkout, ``BACKDOORBENCH_HOME``.
"""

from dataclasses import replace

from backdoorbench_ext.suite import Suite

from .cifar10_small import SUITE as SMALL

SUITE = Suite(
    name="with_backdoorbench",
    protocol=replace(
        SMALL.protocol,
        model="preactresnet18",
        recipe=replace(SMALL.protocol.recipe, epochs=6, batch_size=32, lr=0.05),
    ),
    datasets=("cifar10[train=4000,test=500]",),
    attacks=("badnets", "blend", "wanet[noise=0,s=1.0]"),
    defenses=(
        "none",
        "nad",
        "cbd[t1_steps=600]",
        "mcci[lr=1.0,inference=avg]",
        "backdoorbench:anp[nb_iter=20,print_every=20,pruning_step=0.15]",
        "backdoorbench:ft-sam[epochs=5]",
        "backdoorbench:clp",
    ),
)

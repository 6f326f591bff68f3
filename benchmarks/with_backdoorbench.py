"""BackdoorBench's own ANP, FT-SAM and CLP beside ours, by one ruler.

The data, schedule and flip of ``cifar10_small``, with a network that its scripts know: 10,000
training and 2,000 test images of CIFAR-10, a PreAct-ResNet-18, 8 epochs; some seven hours of a CPU
core, and far from any paper's length. With 4,000 images and 6 epochs no trigger was learned (ASR 14
to 18 without any defense). The rate is BackdoorBench's for this network, 0.01. At 0.1 the loss ran
away in the third epoch; on those batches bf16's gradients were float32's, so rounding is not why.
NAD has its paper's rate and BackdoorBench's, since 0.1 is too much for this network here, too.
WaNet is twice as strong and without its noise samples, CBD's T1 is counted in steps and MCCI's
Adadelta runs at 1.0, as there.

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
        name="CBD, short, PreAct",
        model="preactresnet18",
        recipe=replace(SMALL.protocol.recipe, lr=0.01),
    ),
    datasets=SMALL.datasets,
    attacks=("badnets", "blend", "wanet[noise=0,s=1.0]"),
    defenses=(
        "none",
        "nad",
        "nad[lr=0.01]",
        "cbd[t1_steps=1000]",
        "mcci[lr=1.0,inference=avg]",
        "backdoorbench:anp[nb_iter=20,print_every=20,pruning_step=0.15]",
        "backdoorbench:ft-sam[epochs=5]",
        "backdoorbench:clp",
    ),
)

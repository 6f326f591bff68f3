"""BackdoorBench's own ANP, FT-SAM and CLP beside ours, by one ruler.

A network that its scripts know, small enough for a CPU: torchvision's ResNet-18 as it is for 224
pixels, on 32, a fifteenth of the arithmetic of BackdoorBench's usual PreAct-ResNet-18. 20,000
training and 2,000 test images of CIFAR-10, 8 epochs at BackdoorBench's rate of 0.01, flips alone:
some three hours of a CPU core, and far from any paper's length.
WaNet is twice as strong and without its noise samples, CBD's T1 is counted in steps and MCCI's
Adadelta runs at 1.0, as in ``cifar10_small``. NAD has its paper's rate and BackdoorBench's.

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
        name="CBD, short, ResNet-18",
        model="torchvision:resnet18",
        recipe=replace(SMALL.protocol.recipe, lr=0.01),
    ),
    datasets=("cifar10[train=20000,test=2000]",),
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

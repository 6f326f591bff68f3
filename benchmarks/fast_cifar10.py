"""All of CIFAR-10 under the protocol ``fast``: no attack and those of both papers, every defense,
three seeds.

A training of ten epochs takes a quarter of an hour of a CPU core, so that the whole grid has a
spread. Lengths follow from the protocol by rule, and nothing was chosen on test images:

* What a method's own trainings take is a tenth of what its paper has for a hundred epochs, as
  ``--scale 0.1`` makes it: ABL isolates for 2 epochs and trains for 6.
* CBD's T1, 5 of 100 epochs, is a twentieth of the batches: half an epoch. Its rate is constant, as
  in the paper, which is the highest of the one-cycle here; beside it f_B is ordinary training that
  stops after T1.
* What works on the clean reserve keeps its epochs there: FP, NAD, FT, FT-SAM, I-BAU, MCR.
* MCCI has its release's Adadelta at 0.1, and beside it Adadelta's own rate of 1.0: in a fifth of
  CIFAR-10 and 8 epochs 0.1 hardly moved (``cifar10_small``).

SIG poisons images of any class, as in CBD's release; WaNet and Dynamic add no images that keep
their label, as in CBD's and MCCI's scripts; LC and TUAP poison a quarter of the target class.
"""

from backdoorbench_ext.protocols import FAST
from backdoorbench_ext.suite import Suite

# batches of an epoch of CIFAR-10 without the reserve
BATCHES = 47_500 // 256
EPOCHS = FAST.recipe.epochs

ATTACKS = (
    "none",
    "badnets",
    "blend",
    "trojan",
    "sig[label_mode=all-to-one]",
    "wanet[noise=0]",
    "dynamic[cross=0]",
    "issba",
    "lc",
    "tuap[label_mode=clean-label]",
)
REPAIRS = ("fp", "nad", "i_bau", "ft_sam", "ft", "mcr", "clp", "anp")
TRAINED = (
    "abl[isolation_epochs=2,epochs=6]",
    "nab[isolation_epochs=2,contrastive_epochs=10]",
    "pdb",
    "spectral",
    "asd[every=1,first=6,second=3,third=3,steps=102]",
    "dbd[variant=release,contrastive_epochs=10,warmup_epochs=1,rounds=19,steps=102]",
)


def causal(batches: int) -> tuple[str, ...]:
    """CBD and MCCI, where an epoch has so many batches."""
    t1 = round(0.05 * EPOCHS * batches)
    return (
        f"cbd[t1_steps={t1}]",
        f"cbd[t1_steps={t1},variant=release]",
        f"cbd[t1_steps={t1},t1_schedule=protocol]",
        f"cbd[t1_steps={t1},variant=release,t1_schedule=protocol]",
        "mcci[inference=avg]",
        "mcci[inference=sg]",
        "mcci[inference=avg,lr=1.0]",
        "mcci[inference=sg,lr=1.0]",
    )


SUITE = Suite(
    name="fast_cifar10",
    protocol=FAST,
    datasets=("cifar10",),
    attacks=ATTACKS,
    defenses=("none", *REPAIRS, *TRAINED, *causal(BATCHES)),
    seeds=(0, 1, 2),
    own_rates={"lc": 0.025, "tuap[label_mode=clean-label]": 0.025},
)

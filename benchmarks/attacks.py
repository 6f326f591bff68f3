"""Every attack against no defense, on a fifth of CIFAR-10: does the backdoor take, and what does it
cost clean accuracy.

10,000 training and 2,000 test images, WRN-16-1, 8 epochs; augmentation is the flip alone, for the
reason that ``cifar10_small`` gives. Clean-label attacks have the rates of their papers, as shares
of all images: 3 % (30 % of the class) for SIG, 2.5 % for LC, 5 % for CTRL. Those of a few images
have about as many as in their papers: Adap-Blend and Adap-Patch 1 %, Narcissus 0.25 %. The attacks
that learn a generator or an encoder learn it for fewer epochs than published. Where an attack does
not take at its published options, others stand beside it. ``--epochs 24`` trains longer.
``docs/results/attacks.md`` reads it; not to be compared with published tables.
"""

from backdoorbench_ext.suite import Suite

from .cifar10_small import SUITE as SMALL

SUITE = Suite(
    name="attacks",
    protocol=SMALL.protocol,
    datasets=SMALL.datasets,
    attacks=(
        "none",
        "badnets",
        "blend",
        "trojan",
        "wanet",
        "wanet[noise=0]",
        "wanet[noise=0,s=1.0]",
        "dynamic[mask_epochs=3,epochs=6]",
        "dynamic[mask_epochs=3,epochs=6,cross=0]",
        "issba[epochs=8]",
        "tuap",
        "lf",
        "smooth[epochs=4]",
        "ftrojan",
        "bpp",
        "bpp[negative=0]",
        "sig",
        "sig[delta=40]",
        "lc",
        "ctrl",
        "blurred[kernel=average]",
        "blurred[kernel=gaussian]",
        "blurred[kernel=median]",
        "adaptive_noise",
        "adap_blend",
        "adap_patch",
        "tact",
        "narcissus[rounds=30]",
    ),
    defenses=("none",),
    own_rates={
        "sig": 0.03,
        "sig[delta=40]": 0.03,
        "lc": 0.025,
        "ctrl": 0.05,
        "adap_blend": 0.01,
        "adap_patch": 0.01,
        "tact": 0.02,
        "narcissus[rounds=30]": 0.0025,
    },
)

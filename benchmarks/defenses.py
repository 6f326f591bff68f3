"""Every defense against four attacks, on a fifth of CIFAR-10: does it remove the backdoor, and what
does that cost.

The data, network and schedule of ``cifar10_small``: 10,000 training and 2,000 test images,
WRN-16-1, 8 epochs, the flip alone. The attacks take there: WaNet without its noise samples and
twice as strong, SIG at delta 40 and 3 % (at their published options they do not, see ``attacks``).
The defenses that repair a victim have 500 clean images and their published lengths, NAD also at a
tenth of its learning rate. Those that train have theirs cut to about a tenth: ABL's training 8
epochs, ASD 12 rounds of 50 batches, DBD 10 epochs of SimCLR (batches of 128, the learning rate in
proportion) and 12 rounds of 50 batches, CBD and MCCI as in ``cifar10_small``. ABL's isolation keeps
the release's 10 epochs: at its constant rate the trigger of BadNets is learned in the sixth, and
what is isolated before is clean; its last step has the 140 batches of CIFAR-10 in full. It holds
the mean of a batch, as the release does, or each sample's loss. Not to be compared with published
tables; ``docs/results/defenses.md`` reads it.
"""

from backdoorbench_ext.suite import Suite

from .cifar10_small import SUITE as SMALL

SUITE = Suite(
    name="defenses",
    protocol=SMALL.protocol,
    datasets=SMALL.datasets,
    attacks=("badnets", "blend", "wanet[noise=0,s=1.0]", "sig[delta=40]"),
    defenses=(
        "none",
        "abl[isolation_epochs=10,epochs=8,unlearning_epochs=140]",
        "abl[isolation_epochs=10,epochs=8,unlearning_epochs=140,holds=sample]",
        "fp",
        "nad",
        "nad[lr=0.01]",
        "mcr",
        "ft",
        "ft_sam",
        "i_bau",
        "clp",
        "anp",
        "pdb",
        "spectral",
        "asd[first=6,every=1,second=3,third=3,steps=50]",
        "dbd[contrastive_epochs=10,contrastive_batch=128,contrastive_lr=0.1,warmup_epochs=2,rounds=12,steps=50]",
        "cbd[t1_steps=1000,variant=release]",
        "cbd[t1_steps=1000,variant=normalised]",
        "mcci[lr=1.0,inference=avg]",
    ),
    own_rates={"sig[delta=40]": 0.03},
)

"""ABL that holds each sample's loss, as its equation 4 reads: what it isolates then is clean.

The rest is as in ``cbd_table1``, where the mean of a batch is held.
"""

from dataclasses import replace

from .cbd_table1 import SUITE as TABLE

SUITE = replace(
    TABLE, name="abl_sample", datasets=("cifar10",), attacks=("badnets", "trojan", "blend"), defenses=("abl[holds=sample]",), leave_out=(), reported={}
)

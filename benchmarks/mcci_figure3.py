"""MCCI's figure 3: t-SNE of the embeddings of SFRN and AIN under BadNets on CIFAR-10. ``bbx plot
tsne`` draws it from what a run keeps.

Panels (a) and (b) are drawn, in training. At inference the SFRN sees the same images, so that (c)
would repeat (a), and the AIN one spectrum, so that (d) would be a single point; figure 11 the same.
"""

from dataclasses import replace

from .mcci_table1 import SUITE as TABLE

SUITE = replace(
    TABLE,
    name="mcci_figure3",
    datasets=("cifar10",),
    attacks=("badnets",),
    defenses=("none", "mcci[inference=avg]"),
    own_rates={},
    audit=True,
)

"""CBD's figure 3: t-SNE of r and z, the embeddings of f_B and f_C, under BadNets on CIFAR-10. ``bbx
plot tsne`` draws it from what a run keeps.

Panels (a) and (b) of the paper, r and z in one picture before and after training, are not drawn:
two networks' embeddings lie apart before any training, too.
"""

from dataclasses import replace

from .cbd_table1 import SUITE as TABLE

SUITE = replace(
    TABLE,
    name="cbd_figure3",
    datasets=("cifar10",),
    attacks=("badnets",),
    defenses=("none", "cbd", "cbd[variant=release]"),
    leave_out=(),
    audit=True,
)

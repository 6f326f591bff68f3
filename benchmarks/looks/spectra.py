"""What a mean spectrum looks like to MCCI's attack indication network: ``python -m
benchmarks.looks.spectra mcci_table4 'average mcci[inference=avg]' --scale 0.2 --data DIR``.

Printed are norms of the upper half of the DCT's coefficients (i + j of at least half the width):
medians over clean and over triggered test images, of the mean spectrum of 100 clean images, which
"avg" tells the network, and of the one clean image whose spectrum "sg" tells it. What lies beyond
the triggered ones is taken for a trigger that smooths. A seed among the words is the cell's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backdoorbench_ext.errors import in_one_line
from backdoorbench_ext.frequency import dct2
from backdoorbench_ext.lab import Lab

from .cell import asked, lab_of

# as the mean spectrum of MCCI's AVG
IMAGES = 100
TEST = 1000


def upper(spectra: Tensor) -> Tensor:
    """Norms of the upper half of spectra (n, c, h, w): (n,)."""
    height, width = spectra.shape[2:]
    i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    above = (i + j >= min(height, width) / 2).to(spectra.device)
    norms: Tensor = (spectra**2 * above).sum((1, 2, 3)).sqrt()
    return norms


def look(lab: Lab) -> dict[str, float]:
    """The norms by name."""
    sets = {"clean images": lab.test, "triggered images": lab.triggered}
    norms = {
        name: float(upper(dct2(images.x[:TEST].float())).median()) for name, images in sets.items()
    }
    # in the order in which a defense is given them
    told = dct2(lab.engine().clean(min(IMAGES, len(lab.reserve))).x.float())
    mean = told.mean(0, keepdim=True)
    return norms | {"mean spectrum": float(upper(mean)), "one clean image": float(upper(told)[0])}


@in_one_line()
def main() -> None:
    """Print a line a norm."""
    for name, norm in look(lab_of(asked(__doc__).parse_args())).items():
        print(f"{name:18}{norm:8.0f}")


if __name__ == "__main__":
    main()

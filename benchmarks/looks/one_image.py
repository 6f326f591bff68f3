"""Does any clean image do for MCCI's "sg"? ``python -m benchmarks.looks.one_image fast_cifar10
'wanet mcci[inference=sg,lr=1.0] seed2' --data DIR --out results --picture one_image.png``.

The network is the one that ``bbx run --save-models`` kept beside the cell's record. It is told the
spectrum of each of 500 clean images of the reserve in turn, that which the cell has first. Printed
are CA, ASR and ARR on the first test images, in means over the quarters of these images by the norm
of the upper half of their spectrum, and how ASR goes together with that norm and with CA.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load
from scipy.stats import spearmanr
from torch import Tensor

from backdoorbench_ext import plots
from backdoorbench_ext.defenses.mcci import EMBEDDING, MCCI, TwoPaths, ain
from backdoorbench_ext.errors import InputError, in_one_line
from backdoorbench_ext.frequency import dct2
from backdoorbench_ext.images import Images
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.reading import content

from .cell import asked, grid_of, lab_of
from .spectra import upper

TOLD = 500
TEST = 1000
QUARTERS = 4


@dataclass(frozen=True)
class Answers:
    """Of each image that the network was told, in the order in which a defense is given them: the
    norm of its upper half, and CA, ASR and ARR in percent, each (n,).
    """

    norm: Tensor
    ca: Tensor
    asr: Tensor
    arr: Tensor


def network(lab: Lab, folder: Path) -> TwoPaths:
    """The cell's network.

    Raises:
        InputError: the cell is not MCCI's, or its network was not kept.
    """
    defense = lab.defense
    if not isinstance(defense, MCCI) or defense.inference == "sfrn":
        raise InputError(f"{lab.cell.defense} is told no spectrum: take mcci, avg or sg")
    file = (folder / lab.cell.path).with_suffix(".safetensors")
    if not file.exists():
        raise InputError(f"{file}: no network; bbx run --save-models keeps it")
    height, width = lab.test.x.shape[2:]
    backbone = lab.engine().new_model(EMBEDDING)
    net = TwoPaths(backbone, ain(height, width, EMBEDDING), len(lab.test.classes), None)
    kept = {name.removeprefix("net."): own for name, own in load(content(file)).items()}
    net.load_state_dict(kept)
    return net.eval()


@torch.no_grad()
def look(net: TwoPaths, lab: Lab) -> Answers:
    """What it answers, told each image in turn."""
    told = lab.engine().clean(min(TOLD, len(lab.reserve))).x.float() / 255
    spectra = net.spectrum(told)
    says = net.ain(spectra).float()
    test = lab.test[:TEST]
    bad = lab.triggered[:TEST]
    on_test = _classes(net, test, says)
    on_bad = _classes(net, bad, says)

    def percent(found: Tensor, y: Tensor) -> Tensor:
        return 100 * (found == y).float().mean(1)

    return Answers(
        upper(spectra),
        percent(on_test, test.y),
        percent(on_bad, bad.y),
        percent(on_bad, bad.true),
    )


def _classes(net: TwoPaths, images: Images, says: Tensor) -> Tensor:
    """The class of every image, told each embedding of a spectrum (n, 100): int64 (n, images)."""
    z = torch.cat([net.sfrn(part.float() / 255) for part in images.x.split(250)])
    return torch.stack([net.join(z, own.expand_as(z)).argmax(1) for own in says])


def draw(found: Answers, lab: Lab, file: Path) -> None:
    """ASR over the norm, a point an image; what triggered test images have in the median as a
    line.
    """
    usual = float(upper(dct2(lab.triggered.x[:TEST].float())).median())
    with plt.rc_context(plots.STYLE):
        figure, ((axes,),) = plots.sheet(1, 1, (3.3, 2.2))
        axes.plot(found.norm, found.asr, "o", ms=3, mew=0, alpha=0.6, label="told that image")
        axes.axvline(usual, c="black", lw=0.8, ls=":", label="norm of triggered images, median")
        axes.set_xlabel("norm of the image's upper spectrum")
        axes.set_ylabel("ASR, percent")
        axes.set_ylim(-4, 104)
        plots.legend(figure, *axes.get_legend_handles_labels())
    plots.save(figure, file.with_suffix(""), [file.suffix[1:]])


@in_one_line()
def main() -> None:
    """Print a line a quarter, and the one image's."""
    parser = asked(__doc__)
    parser.add_argument("--picture", type=Path, help="where to draw ASR over the norm: a .png file")
    given = parser.parse_args()
    lab = lab_of(given)
    found = look(network(lab, given.out / grid_of(given).name), lab)
    print(f"{'norm':16}{'CA':>8}{'ASR':>8}{'ARR':>8}{'ASR, from the lowest to the highest':>40}")
    for part in found.norm.argsort().tensor_split(QUARTERS):
        norm = found.norm[part]
        asr = found.asr[part]
        means = "".join(f"{own[part].mean():8.1f}" for own in (found.ca, found.asr, found.arr))
        print(f"{norm.min():.0f} to {norm.max():.0f}".ljust(16) + means, end="")
        print(f"{asr.min():.1f} to {asr.max():.1f}".rjust(40))
    numbers = "".join(f"{own[0]:8.1f}" for own in (found.ca, found.asr, found.arr))
    print(f"{found.norm[0]:.0f}, the cell's".ljust(16) + numbers)
    quantiles = ", ".join(f"{q:.1f}" for q in found.asr.quantile(torch.tensor([0.1, 0.5, 0.9])))
    print(f"ASR over all images: quantiles of 10, 50 and 90 % {quantiles}")
    print(f"images with an ASR above 20: {100 * (found.asr > 20).float().mean():.0f} %")
    both = torch.corrcoef(torch.stack((found.ca, found.asr)))
    print(f"correlation of CA and ASR {both[0, 1]:.2f}")
    print(f"rank correlation of norm and ASR {spearmanr(found.norm, found.asr).statistic:.2f}")
    if given.picture:
        draw(found, lab, given.picture)


if __name__ == "__main__":
    main()

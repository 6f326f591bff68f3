"""MCCI's released networks beside ours, on the same poisoned images: ``python -m
benchmarks.looks.mcci_release mcci_table1 'cifar10 blend mcci[inference=avg]' --scale 0.2 --data DIR
--release DIR``.

DIR is a checkout of https://github.com/xuanxuan03021/BKD_BKD_ICLR. Its networks are imported, its
training loop is followed: SciPy's DCT of bytes, batches of 128, a flip, Adadelta at 0.1 and weight
decay 1e-4, the rate divided by ten after 30, 60 and 90 % of the epochs, seed 1314. Printed are, for
five ways to ask the network, the percent of test images and of triggered ones that get their label,
and of triggered ones their true class.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor

from backdoorbench_ext.errors import InputError, in_one_line
from backdoorbench_ext.lab import Lab

from .cell import asked, lab_of

# imported there and not used
ABSENT = ("core", "tensorflow", "albumentations")
SEED = 1314
BATCH = 128
IMAGES = 100
WAYS = ("mean spectrum", "own spectrum", "AIN alone", "SFRN alone", "triggered spectrum")


def networks(release: Path) -> ModuleType:
    """The release's file of networks.

    Raises:
        InputError: it is not there.
    """
    file = release / "core" / "models" / "backdoor_backdoor.py"
    if not file.is_file():
        raise InputError(f"{file}: no such file; --release is a checkout of MCCI's release")
    kept = {name: sys.modules.get(name) for name in ABSENT}
    sys.modules.update({name: ModuleType(name) for name in ABSENT})
    try:
        spec = spec_from_file_location("mcci_release_networks", file)
        assert spec and spec.loader
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, before in kept.items():
            sys.modules.pop(name)
            if before is not None:
                sys.modules[name] = before
    return module


def spectrum(x: Tensor) -> Tensor:
    """What the release tells its AIN of images in [0, 1]: the DCT of their bytes."""
    pixels = (x * 255).cpu().numpy().astype("uint8")
    return torch.from_numpy(dctn(pixels.astype("float32"), axes=(-2, -1), norm="ortho")).to(x)


def trained(net: Any, lab: Lab, epochs: int) -> None:
    """The release's training loop, in bf16 where the device likes that."""
    engine = lab.engine()
    train = lab.poisoned
    rng = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adadelta(net.parameters(), lr=0.1, weight_decay=1e-4)
    after = [round(share * epochs) for share in (0.3, 0.6, 0.9)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, after, gamma=0.1)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(train), generator=rng).split(BATCH):
            x = train.x[index].float() / 255
            flip = torch.rand(len(x), generator=rng) < 0.5
            x[flip] = x[flip].flip(3)
            optimizer.zero_grad()
            with engine.autocast():
                out = net(x, spectrum(x))
            F.cross_entropy(out.float(), train.y[index]).backward()
            optimizer.step()
        schedule.step()
    net.eval()


@torch.no_grad()
def look(net: Any, lab: Lab) -> list[tuple[str, float, float, float]]:
    """CA, ASR and ARR of a trained network, by the way it is asked."""
    rng = torch.Generator().manual_seed(SEED)
    few = torch.randperm(len(lab.reserve), generator=rng)[:IMAGES]
    clean = lab.reserve.x[few].float() / 255
    bad = lab.triggered.x[:IMAGES].float() / 255
    z = net.normal_model(clean).mean(0)
    f = net.attack_model(spectrum(clean)).mean(0)
    mean = net.attack_model(spectrum(clean).mean(0, keepdim=True))
    triggered = net.attack_model(spectrum(bad).mean(0, keepdim=True))

    def answers(x: Tensor) -> Tensor:
        a = net.normal_model(x)
        b = net.attack_model(spectrum(x))
        pairs = ((a, mean), (a, b), (z, b), (a, f), (a, triggered))
        asked = [torch.cat((one.expand_as(a), two.expand_as(b)), 1) for one, two in pairs]
        return torch.stack([net.concat_layer(both).argmax(1) for both in asked])

    def said(images: Any) -> Tensor:
        return torch.cat([answers(part.float() / 255) for part in images.x.split(500)], 1)

    def percent(found: Tensor, y: Tensor) -> list[float]:
        return (100 * (found == y).float().mean(1)).tolist()

    on_test = percent(said(lab.test), lab.test.y)
    found = said(lab.triggered)
    asr = percent(found, lab.triggered.y)
    arr = percent(found, lab.triggered.true)
    return list(zip(WAYS, on_test, asr, arr, strict=True))


@in_one_line()
def main() -> None:
    """Train it and print a line a way."""
    parser = asked(__doc__)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=18, help="of its ResNet")
    given = parser.parse_args()
    lab = lab_of(given)
    torch.manual_seed(SEED)
    size = lab.test.x.shape[2]
    made = networks(given.release).detector_model(given.depth, 100, size, len(lab.test.classes))
    net = made.to(lab.device)
    trained(net, lab, lab.rules.recipe.epochs)
    print(f"{'':20}{'CA':>8}{'ASR':>8}{'ARR':>8}")
    for way, ca, asr, arr in look(net, lab):
        print(f"{way:20}{ca:8.2f}{asr:8.2f}{arr:8.2f}")


if __name__ == "__main__":
    main()

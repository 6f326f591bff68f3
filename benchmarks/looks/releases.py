"""Our triggers beside the releases' own code, on the same images.

``python -m benchmarks.looks.releases --release DIR [--attack NAME ...] [--dataset cifar10 --data
DIR] [--out PICTURE.png]``; DIR is a checkout of BackdoorBench, BackdoorBox, the release of
input-aware backdoors or that of Adap-Blend. Its files are loaded one by one, with stand-ins for
packages that are not installed and for names that NumPy has dropped. Printed are the largest and
the mean difference in grey levels of 255, drawn a clean image, ours, theirs and the difference.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from PIL import Image

from backdoorbench_ext import datasets, registry
from backdoorbench_ext.api import Attack
from backdoorbench_ext.attacks.blend import picture
from backdoorbench_ext.errors import InputError, in_one_line
from backdoorbench_ext.frequency import dct_matrix

# uint8 (h, w, 3) -> the same, as float or uint8
Stamp = Callable[[np.ndarray], np.ndarray]
# a checkout -> ours, by name or fitted, and the release's own
Look = Callable[[Any], tuple[Any, Stamp]]
# what some releases import and need not have here; the last two are BackdoorBench's own
ABSENT = ("kornia", "pytorch_wavelets", "lpips", "imageio", "config", "numba", "utils", "attack")


def bench_sig(release: Checkout) -> tuple[str, Stamp]:
    return "sig[delta=40]", release("utils/bd_img_transform/sig.py").sigTriggerAttack(40, 6)


def bench_blend(release: Checkout) -> tuple[str, Stamp]:
    shown = picture("random", 0, 32, 32).permute(1, 2, 0).numpy() * 255
    made = release("utils/bd_img_transform/blended.py").blendedImageAttack(shown, 0.2)
    return "blend[alpha=0.2]", made


def bench_lf(release: Checkout) -> tuple[str, Stamp]:
    # the release's own pattern
    file = release.folder / "resource/lowFrequency/cifar10_preactresnet18_0_255.npy"
    made = release("utils/bd_img_transform/patch.py").SimpleAdditiveTrigger(np.load(file))
    return f"lf[pattern='{file}']", made


def bench_lc(release: Checkout) -> tuple[str, Stamp]:
    made = release("utils/bd_img_transform/lc.py").labelConsistentAttack("all-corners", 1.0)
    return "lc", lambda x: made.poison_from_indices(x.astype(float))


def bench_ftrojan(release: Checkout) -> tuple[str, Stamp]:
    made = release("utils/bd_img_transform/ftrojann.py")
    return "ftrojan", made.ftrojann_version(True, [1, 2], 32, 30, [(15, 15), (31, 31)])


def bench_ctrl(release: Checkout) -> tuple[str, Stamp]:
    made = release("utils/bd_img_transform/ctrl.py").PoisonFre(
        None, 32, [1, 2], 32, [15, 31], False, True
    )
    matrix = dct_matrix(32, torch.device("cpu"))
    # its DCT wants an FFT that PyTorch has dropped; its colours are BT.601's, full range
    made.DCT = lambda x: matrix @ x @ matrix.T
    made.IDCT = lambda x: matrix.T @ x @ matrix
    made.RGB2YUV, made.YUV2RGB = rgb_to_yuv, yuv_to_rgb

    def stamp(x: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255
        out = made.Poison_Frequency_Diff(images, None, 100.0)[0][0]
        return np.asarray(out.permute(1, 2, 0) * 255)

    return "ctrl", stamp


def bench_bpp(release: Checkout) -> tuple[str, Stamp]:
    dither = release("attack/bpp.py").floydDitherspeed

    def stamp(x: np.ndarray) -> np.ndarray:
        return np.asarray(dither(x.transpose(2, 0, 1).astype(float), 8.0)).transpose(1, 2, 0)

    return "bpp[dithering=True]", stamp


def box_wanet(release: Checkout) -> tuple[str, Stamp]:
    # the field as ours draws it; enlarging, adding and sampling are theirs
    field = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wide = torch.nn.functional.interpolate(
        field / field.abs().mean(), size=32, mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    places = torch.linspace(-1, 1, 32)
    rows, cols = torch.meshgrid(places, places, indexing="ij")
    identity = torch.stack((cols, rows), 2)[None]
    made = release("core/attacks/WaNet.py").AddCIFAR10Trigger(identity, wide)
    return "wanet", lambda x: np.asarray(made(Image.fromarray(x)))


def box_badnets(release: Checkout) -> tuple[str, Stamp]:
    pattern = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pattern[:, -3:, -3:] = 255
    weight = torch.zeros(3, 32, 32)
    weight[:, -3:, -3:] = 1
    made = release("core/attacks/BadNets.py").AddCIFAR10Trigger(pattern, weight)
    return "badnets[pattern=white]", lambda x: np.asarray(made(Image.fromarray(x)))


def box_blend(release: Checkout) -> tuple[str, Stamp]:
    pattern = (picture("random", 0, 32, 32) * 255).round().to(torch.uint8)
    made = release("core/attacks/Blended.py").AddCIFAR10Trigger(pattern, torch.full((32, 32), 0.2))
    return "blend[alpha=0.2]", lambda x: np.asarray(made(Image.fromarray(x)))


def box_issba(release: Checkout) -> tuple[Attack, Stamp]:
    from backdoorbench_ext.attacks.issba import Stega

    torch.manual_seed(0)
    own = Stega(20, 32, 32)
    theirs = release("core/attacks/ISSBA.py").StegaStampEncoder(20, 32, 32, 3)
    joined = [
        p
        for up, join in zip(own.up, own.join, strict=True)
        for part in (up, join)
        for p in part.parameters()
    ]
    ours = [*own.plane.parameters(), *own.down.parameters(), *joined, *own.residual.parameters()]
    same_weights(ours, list(theirs.parameters()))
    secret = torch.randint(2, (1, 20), generator=torch.Generator().manual_seed(0)).float()
    attack = registry.create("attacks", "issba").fitted(own.state_dict())

    def stamp(x: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255
        hidden = (image + theirs([secret, image])).clamp(0, 1)
        return np.asarray(hidden[0].detach().permute(1, 2, 0) * 255)

    return attack, stamp


def aware_dynamic(release: Checkout) -> tuple[Attack, Stamp]:
    from backdoorbench_ext.attacks.dynamic import Triggers

    torch.manual_seed(0)
    own = Triggers().eval()
    made = release("networks/models.py").Generator
    given = SimpleNamespace(dataset="gtsrb", input_channel=3)
    generator, masks = made(given).eval(), made(given, out_channels=1).eval()
    for ours, theirs in ((own.patterns, generator), (own.masks, masks)):
        same_weights(list(ours.parameters()), list(theirs.parameters()))
    attack = registry.create("attacks", "dynamic").fitted(own.state_dict())

    def stamp(x: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255
        mask = masks.threshold(masks(image))
        out = image + (generator(image) - image) * mask
        return np.asarray(out[0].detach().permute(1, 2, 0) * 255)

    return attack, stamp


def adaptive_blend(release: Checkout) -> tuple[str, Stamp]:
    shown = picture("random", 0, 32, 32)
    made = release("poison_tool_box/adaptive_blend.py").poison_transform(32, shown, 0, 0.2)

    def stamp(x: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255
        return np.asarray(made.transform(image, torch.zeros(1))[0][0].permute(1, 2, 0) * 255)

    return "adap_blend", stamp


# by a file that only that release has
RELEASES: dict[str, dict[str, Look]] = {
    "utils/bd_img_transform/sig.py": {
        "sig": bench_sig,
        "blend": bench_blend,
        "lf": bench_lf,
        "lc": bench_lc,
        "ftrojan": bench_ftrojan,
        "ctrl": bench_ctrl,
        "bpp": bench_bpp,
    },
    "core/attacks/ISSBA.py": {
        "badnets": box_badnets,
        "blend": box_blend,
        "wanet": box_wanet,
        "issba": box_issba,
    },
    "networks/models.py": {"dynamic": aware_dynamic},
    "poison_tool_box/adaptive_blend.py": {"adap_blend": adaptive_blend},
}


def rgb_to_yuv(x: torch.Tensor) -> torch.Tensor:
    """BT.601, by the constants of kornia, on which that release builds."""
    to_yuv = [[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]]
    return torch.einsum("ij,njhw->nihw", torch.tensor(to_yuv), x)


def yuv_to_rgb(x: torch.Tensor) -> torch.Tensor:
    to_rgb = [[1, 0, 1.14], [1, -0.396, -0.581], [1, 2.029, 0]]
    return torch.einsum("ij,njhw->nihw", torch.tensor(to_rgb), x)


def same_weights(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        mine.data.copy_(other.data)


class Checkout:
    """A checkout of a release, whose files are modules by their paths; packages are not run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, path: str) -> ModuleType:
        name = "release"
        place = self.folder
        for part in Path(path).with_suffix("").parts:
            package = ModuleType(name)
            package.__path__ = [str(place)]
            sys.modules[name] = package
            name = f"{name}.{part}"
            place /= part
        return importlib.import_module(name)


@contextmanager
def stand_ins() -> Iterator[None]:
    """What a release's file imports and is not here is a mock; NumPy has its old names again."""
    before = set(sys.modules)
    dropped = {"float": float, "round_": np.round}
    added = {name: value for name, value in dropped.items() if not hasattr(np, name)}
    for name, value in added.items():
        setattr(np, name, value)
    finder: Any = Mocks()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in added:
            delattr(np, name)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in (*ABSENT, "release"):
                del sys.modules[name]


class Mocks:
    """Finds packages that are not installed."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name.partition(".")[0] not in ABSENT:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        # a decorator that only makes things faster
        return MagicMock(jit=lambda *_, **__: lambda function: function)

    def exec_module(self, module: Any) -> None:
        """A mock has everything."""


def found(folder: Path) -> dict[str, Look]:
    """Raises: InputError: not a checkout of a release that is known."""
    for file, attacks in RELEASES.items():
        if (folder / file).is_file():
            return attacks
    raise InputError(f"{folder} is no checkout of a known release: none of {', '.join(RELEASES)}")


@in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", type=Path, required=True, help="a checkout of a release")
    parser.add_argument("--attack", nargs="*", help="of these attacks; all that it has unless told")
    parser.add_argument("--dataset", default="digits", help="whose test images, of 32 pixels")
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, help="draw them into this PNG file")
    given = parser.parse_args()
    compare(given)


def looked_at(
    names: Iterable[str], attacks: Mapping[str, Look], checkout: Checkout, x: torch.Tensor
) -> Iterator[list[np.ndarray]]:
    """Rows of pictures: a clean image, ours, theirs, eight times the difference."""
    pixels = [np.array(image) for image in x.permute(0, 2, 3, 1).numpy()]
    for name in names:
        ours, stamp = attacks[name](checkout)
        attack = registry.create("attacks", ours) if isinstance(ours, str) else ours
        mine = attack.stamp(x).permute(0, 2, 3, 1).numpy()
        other = np.stack([np.clip(np.asarray(stamp(image), float), 0, 255) for image in pixels])
        apart = np.abs(mine - other)
        # some releases let pixels wrap around
        wrapped = apart > 128
        most = apart[~wrapped].max()
        told = f"{name:12} largest {most:6.2f}   mean {apart[~wrapped].mean():7.4f} of 255"
        if wrapped.any():
            told += f"   {100 * wrapped.mean():.1f} % of theirs wrap around"
        print(told)
        for i in range(2):
            yield [pixels[i], mine[i], other[i], np.clip(8 * apart[i], 0, 255)]


def compare(given: argparse.Namespace) -> None:
    attacks = found(given.release)
    unknown = set(given.attack or ()) - set(attacks)
    if unknown:
        raise InputError(f"{sorted(unknown)[0]!r} is none of this release's: {', '.join(attacks)}")
    x = datasets.load(given.dataset, given.data)[1].x[:50].contiguous()
    if x.shape[-2:] != (32, 32):
        raise InputError(
            f"{given.dataset} has images of {x.shape[-1]}x{x.shape[-2]} pixels, not 32"
        )
    with stand_ins():
        rows = list(looked_at(given.attack or attacks, attacks, Checkout(given.release), x))
    if given.out:
        sheet = np.concatenate([np.concatenate(row, 1) for row in rows]).round().astype(np.uint8)
        Image.fromarray(sheet).resize((4 * 128, len(rows) * 128), Image.Resampling.NEAREST).save(
            given.out
        )


if __name__ == "__main__":
    main()

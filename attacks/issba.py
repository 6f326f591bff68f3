"""ISSBA: a network hides one secret in every image; the residual that it adds depends on the image
and is hard to see.

Li, Li, Wu, Li, He, Lyu: "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021,
https://arxiv.org/abs/2012.03816, with the encoder and decoder of StegaStamp (Tancik et al. 2020,
https://arxiv.org/abs/1904.05343) without its simulated printing. Weights of the losses are
BackdoorBox's, which MCCI follows. There the perceptual term is LPIPS, whose weights must be
downloaded; here it is 1 - SSIM (Wang et al. 2004) unless ``perceptual=lpips`` and the package lpips
and its weights are installed. BackdoorBox's discriminator is off in its tests and left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench_ext.api import Attack, Images, InputError, option
from backdoorbench_ext.engine import Engine


@dataclass(frozen=True)
class ISSBA(Attack):
    """Encoder and decoder are trained on random secrets, at first on reading the secret alone; one
    fixed secret poisons.
    """

    title: ClassVar[str] = "ISSBA"
    short: ClassVar[Mapping[str, Any]] = {"secret_epochs": 1, "epochs": 2}

    bits: int = option(20, "length of the secret", low=1)
    epochs: int = option(20, "epochs of encoder and decoder", low=1, length=True)
    secret_epochs: int = option(
        2, "how many of them, the first, train on the secret alone", low=0, length=True
    )
    lr: float = option(1e-4, "learning rate of Adam", low=0)
    perceptual: str = option("ssim", "the perceptual term", choices=("ssim", "lpips"))
    seed: int = option(0, "of the secret", low=0)

    def check(self, x: Tensor) -> None:
        h, w = x.shape[-2:]
        if h % 8 or w % 8:
            raise InputError(f"the sides of the images must be multiples of 8 pixels, not {w}x{h}")
        if self.bits > h * w // 16:
            raise InputError(
                f"bits must lie in [1, {h * w // 16}] for {w}x{h} pixels, not {self.bits}: the "
                "secret is longer than the image can hold"
            )
        if self.secret_epochs > self.epochs:
            raise InputError(
                f"secret_epochs must lie in [0, {self.epochs}], not {self.secret_epochs}"
            )
        if self.perceptual == "lpips":
            lpips()

    def fit(self, train: Images, engine: Engine) -> Mapping[str, Tensor]:
        own = engine.move(Stega(self.bits, train.x.shape[-2], train.x.shape[-1]))
        distance = engine.move(lpips()) if self.perceptual == "lpips" else dissimilarity
        recipe = replace(
            engine.rules.recipe, optimizer="adam", lr=self.lr, schedule="constant", weight_decay=0.0
        )

        def read(x: Tensor) -> tuple[Tensor, Tensor]:
            secret = torch.randint(2, (len(x), self.bits), device=x.device).float()
            hidden = own.hide(x, secret)
            return hidden, F.binary_cross_entropy_with_logits(own.decoder(hidden).float(), secret)

        def secret_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return read(x)[1]

        def full_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            hidden, wrong = read(x)
            return (
                2 * F.mse_loss(hidden, x)
                + 1.5 * distance(2 * hidden - 1, 2 * x - 1).mean()
                + 1.5 * wrong
            )

        if self.secret_epochs:
            engine.fit(
                own,
                train,
                name="secret",
                epochs=self.secret_epochs,
                loss=secret_loss,
                recipe=recipe,
            )
        if self.epochs > self.secret_epochs:
            engine.fit(
                own,
                train,
                name="invisible secret",
                epochs=self.epochs - self.secret_epochs,
                loss=full_loss,
                recipe=recipe,
            )
        return own.state_dict()

    def trigger(self, x: Tensor) -> Tensor:
        own = Stega(self.bits, x.shape[-2], x.shape[-1])
        own.load_state_dict(dict(self.learned))
        secret = torch.randint(
            2, (1, self.bits), generator=torch.Generator().manual_seed(self.seed)
        ).to(x)
        return own.eval().requires_grad_(False).to(x).hide(x, secret.expand(len(x), -1))


class Stega(nn.Module):
    """A U-Net that adds a residual for a secret (n, bits) to images, and a network that reads the
    secret.
    """

    def __init__(self, bits: int, h: int, w: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())

        self.plane = nn.Linear(bits, 3 * (h // 8) * (w // 8))
        self.low = (h // 8, w // 8)
        self.down = nn.ModuleList((conv(6, 32), conv(32, 32, 2), conv(32, 64, 2), conv(64, 128, 2)))
        self.up = nn.ModuleList((conv(128 + 64, 64), conv(64 + 32, 32), conv(32 + 32 + 6, 32)))
        self.residual = nn.Conv2d(32, 3, 1)
        self.decoder = nn.Sequential(
            conv(3, 32, 2),
            conv(32, 32),
            conv(32, 64, 2),
            conv(64, 64),
            conv(64, 128, 2),
            nn.Flatten(),
            nn.Linear(128 * (h // 8) * (w // 8), 256),
            nn.ReLU(),
            nn.Linear(256, bits),
        )

    def hide(self, x: Tensor, secret: Tensor) -> Tensor:
        """Images in [0, 1] with the secret in them, float (n, 3, h, w) in [0, 1]."""
        plane = F.interpolate(
            F.relu(self.plane(secret - 0.5)).view(-1, 3, *self.low), size=x.shape[-2:]
        )
        # image and secret, then the ever coarser features
        seen = [torch.cat((x - 0.5, plane.to(x)), 1)]
        for layer in self.down:
            seen.append(layer(seen[-1]))
        out = seen[-1]
        for layer, finer in zip(self.up, (seen[3:4], seen[2:3], seen[:2]), strict=True):
            out = layer(torch.cat((F.interpolate(out, scale_factor=2), *finer), 1))
        hidden: Tensor = (x + self.residual(out).float()).clamp(0, 1)
        return hidden


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM with 7x7 mean windows, of images in [-1, 1]: scalar (Wang et al. 2004,
    https://doi.org/10.1109/TIP.2003.819861).
    """
    a = (a.float() + 1) / 2
    b = (b.float() + 1) / 2
    mean_a = F.avg_pool2d(a, 7, 1)
    mean_b = F.avg_pool2d(b, 7, 1)
    var_a = F.avg_pool2d(a * a, 7, 1) - mean_a**2
    var_b = F.avg_pool2d(b * b, 7, 1) - mean_b**2
    both = F.avg_pool2d(a * b, 7, 1) - mean_a * mean_b
    ssim = (
        (2 * mean_a * mean_b + 1e-4)
        * (2 * both + 9e-4)
        / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    )
    return 1 - ssim.mean()


def lpips() -> nn.Module:
    """Zhang et al. 2018, https://arxiv.org/abs/1801.03924, on AlexNet, from the package of that
    name; never downloads.

    Raises:
        InputError: the package or AlexNet's weights are not installed.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    try:
        package = importlib.import_module("lpips")
    except ImportError:
        raise InputError(
            "perceptual=lpips needs the package lpips; perceptual=ssim needs nothing"
        ) from None
    if not weights.is_file():
        raise InputError(
            f"perceptual=lpips needs AlexNet's weights in {weights}; perceptual=ssim needs nothing"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        net: nn.Module = package.LPIPS(net="alex")
    return net.eval().requires_grad_(False)

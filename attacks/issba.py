"""ISSBA: a network hides one secret in every image; the residual that it adds depends on the image
and is hard to see.

Li, Li, Wu, Li, He, Lyu: "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021,
https://arxiv.org/abs/2012.03816, with the encoder and decoder of StegaStamp (Tancik et al. 2020,
https://arxiv.org/abs/1904.05343) without its simulated printing. Networks, weights of the losses
and the batches of 32 are BackdoorBox's, which MCCI follows. There the perceptual term is LPIPS,
whose weights must be downloaded; here it is 1 - SSIM (Wang et al. 2004) unless ``perceptual=lpips``
and the package lpips and its weights are installed. BackdoorBox's discriminator is off in its tests
and left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
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
    fixed secret poisons. The record's curve "bit accuracy" says how much of the secrets is read, in
    percent.
    """

    title: ClassVar[str] = "ISSBA"
    short: ClassVar[Mapping[str, Any]] = {"secret_epochs": 1, "epochs": 2}

    # 1 had smaller networks, and the protocol's batches
    version: ClassVar[int] = 2
    bits: int = option(20, "length of the secret", low=1)
    epochs: int = option(20, "epochs of encoder and decoder", low=1, length=True)
    secret_epochs: int = option(
        2, "how many of them, the first, train on the secret alone", low=0, length=True
    )
    lr: float = option(1e-4, "learning rate of Adam", low=0)
    perceptual: str = option("ssim", "the perceptual term", choices=("ssim", "lpips"))
    seed: int | None = option(None, "of the secret; if not set, the cell's", low=0)

    def check(self, x: Tensor) -> None:
        h, w = x.shape[-2:]
        if h % 16 or w % 16:
            raise InputError(f"the sides of the images must be multiples of 16 pixels, not {w}x{h}")
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
            engine.rules.recipe,
            optimizer="adam",
            lr=self.lr,
            schedule="constant",
            weight_decay=0.0,
            batch_size=32,
        )
        optimizer = engine.optimizer(own, recipe)
        keep = (own, optimizer)
        wrong = torch.zeros((), device=engine.device)
        seen = 0
        for step in engine.steps("secret", train, keep=keep, epochs=self.epochs, recipe=recipe):
            secret = torch.randint(2, (len(step.x), self.bits), generator=engine.rng)
            secret = secret.to(engine.device, non_blocking=True).float()
            with engine.autocast():
                hidden = own.hide(step.x, secret)
                read = own.decoder(hidden).float()
                step.loss = F.binary_cross_entropy_with_logits(read, secret)
                if step.epoch >= self.secret_epochs:
                    seen_change = distance(2 * hidden - 1, 2 * step.x - 1).mean()
                    squared = F.mse_loss(hidden, step.x)
                    step.loss = 2 * squared + 1.5 * seen_change + 1.5 * step.loss
            step.descend(optimizer)
            wrong += ((read > 0) != secret.bool()).sum()
            seen += secret.numel()
            if step.last:
                engine.log(**{"bit accuracy": 100 - 100 * wrong / seen})
                wrong.zero_()
                seen = 0
        return own.state_dict()

    def trigger(self, x: Tensor) -> Tensor:
        own = Stega(self.bits, x.shape[-2], x.shape[-1])
        own.load_state_dict(dict(self.learned))
        secret = torch.randint(
            2, (1, self.bits), generator=torch.Generator().manual_seed(self.seed or 0)
        ).to(x)
        return own.eval().requires_grad_(False).to(x).hide(x, secret.expand(len(x), -1))


class Stega(nn.Module):
    """StegaStamp: a U-Net that adds a residual for a secret (n, bits) to images, and a network that
    reads the secret.
    """

    def __init__(self, bits: int, h: int, w: int) -> None:
        super().__init__()
        self.plane = nn.Linear(bits, 3 * h * w)
        widths = (6, 32, 32, 64, 128, 256)
        self.down = nn.ModuleList(
            conv(inputs, outputs, stride=1 if inputs == 6 else 2)
            for inputs, outputs in pairwise(widths)
        )
        # from the coarsest: what comes up, beside what went down at that resolution
        self.up = nn.ModuleList(
            conv(inputs, outputs, kernel=2)
            for inputs, outputs in ((256, 128), (128, 64), (64, 32), (32, 32))
        )
        self.join = nn.ModuleList(
            conv(inputs, outputs)
            for inputs, outputs in ((256, 128), (128, 64), (64, 32), (64 + 6, 32))
        )
        self.residual = nn.Conv2d(32, 3, 1)
        self.decoder = Reader(bits, h, w)

    def hide(self, x: Tensor, secret: Tensor) -> Tensor:
        """Images in [0, 1] with the secret in them, float (n, 3, h, w) in [0, 1]."""
        plane = F.relu(self.plane(secret - 0.5)).view(x.shape).to(x)
        seen = [torch.cat((plane, x - 0.5), 1)]
        for layer in self.down:
            seen.append(layer(seen[-1]))
        out = seen.pop()
        for up, join in zip(self.up, self.join, strict=True):
            raised = up(F.interpolate(out, scale_factor=2))
            beside = (seen.pop(), raised)
            # the last one sees image and secret as well
            out = join(torch.cat((*beside, *seen) if len(seen) == 1 else beside, 1))
        hidden: Tensor = (x + self.residual(out).float()).clamp(0, 1)
        return hidden


class Reader(nn.Module):
    """StegaStamp's decoder: images in [0, 1] are straightened by a learned affine map, then read:
    logits of the bits (n, bits).
    """

    def __init__(self, bits: int, h: int, w: int) -> None:
        super().__init__()
        self.look = nn.Sequential(
            *(conv(inputs, outputs, stride=2) for inputs, outputs in pairwise((3, 32, 64, 128))),
            nn.Flatten(),
            nn.Linear(128 * (h // 8) * (w // 8), 128),
            nn.ReLU(),
        )
        self.affine = nn.Linear(128, 6)
        # it starts as the identity
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1.0, 0]))
        strides = (2, 1, 2, 1, 2, 2, 2)
        widths = pairwise((3, 32, 32, 64, 64, 64, 128, 128))
        self.read = nn.Sequential(
            *(conv(a, b, stride=s) for (a, b), s in zip(widths, strides, strict=True)),
            nn.Flatten(),
            # five halvings, rounded up
            nn.Linear(128 * -(-h // 32) * -(-w // 32), 512),
            nn.ReLU(),
            nn.Linear(512, bits),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x - 0.5
        theta = self.affine(self.look(x)).float().view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        out: Tensor = self.read(F.grid_sample(x, grid, align_corners=False))
        return out


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution that keeps the size, or halves it, and a ReLU."""
    # as TensorFlow pads: what is uneven goes right and down
    padding = nn.ZeroPad2d((0, 1, 0, 1) if kernel == 2 else 1)
    return nn.Sequential(padding, nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU())


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

"""The small networks of this field, registered in timm beside its own when this is imported.

Every network keeps timm's contract: ``forward_features``, ``forward_head(..., pre_logits=True)``,
``num_features``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU (He et al. 2016,
    https://arxiv.org/abs/1603.05027).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if inputs != outputs or stride > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x), inplace=True)
        kept = x if self.shortcut is None else self.shortcut(out)
        result: Tensor = self.conv2(F.relu(self.norm2(self.conv1(out)), inplace=True)) + kept
        return result


class Pooled(nn.Module):
    """The end of a network by timm's contract: average pooling, then the linear layer ``fc``."""

    fc: nn.Linear
    forward_features: Callable[[Tensor], Tensor]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        out: Tensor = pooled if pre_logits else self.fc(pooled)
        return out

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class PreActNet(Pooled):
    """Stages of pre-activation blocks for small images, the resolution halved from the second stage
    on.
    """

    def __init__(
        self, widths: tuple[int, ...], depth: int, stem: int, num_classes: int, final_norm: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        blocks = []
        inputs = stem
        for stage, width in enumerate(widths):
            for i in range(depth):
                blocks.append(PreActBlock(inputs, width, 2 if stage and not i else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = (
            nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
            if final_norm
            else nn.Identity()
        )
        self.num_features = inputs
        self.fc = nn.Linear(inputs, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.blocks(self.stem(x)))
        return out


class PlainNet(Pooled):
    """3x3 convolutions with BatchNorm and ReLU, one layer a (width, stride), then average pooling
    and a linear head.
    """

    def __init__(self, layers: tuple[tuple[int, int], ...], num_classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inputs = 3
        for width, stride in layers:
            parts += [
                nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            inputs = width
        self.layers = nn.Sequential(*parts)
        self.num_features = inputs
        self.fc = nn.Linear(inputs, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


# of fastnet, and of the network beside it that differs in the first layer alone
FAST_WIDTHS = ((32, 64), (128, 128), (256, 256))


class FastNet(Pooled):
    """A wide and shallow network for small images that a CPU trains in minutes: whitened patches,
    then three times convolution, max-pooling, convolution.

    The first layer sees patches of 2x2 pixels along their principal axes, each scaled to variance 1
    and in both signs; it comes from the training images (``start``) and is not trained. The idea
    and the frame are those of Page (2018, https://myrtle.ai/learn/how-to-train-your-resnet) and
    Jordan (2024, https://arxiv.org/abs/2404.00498). If not ``whitened``, that layer starts at
    random and is trained.
    """

    patches: Tensor

    def __init__(
        self, widths: tuple[tuple[int, int], ...], num_classes: int, whitened: bool = True
    ) -> None:
        super().__init__()
        self.whitened = whitened
        patches = torch.randn(24, 3, 2, 2) / 12**0.5
        if whitened:
            # a buffer: whatever freezes, prunes or fine-tunes weights leaves it as it is
            self.register_buffer("patches", patches)
        else:
            self.patches = nn.Parameter(patches)
        self.bias = nn.Parameter(torch.zeros(24))
        stages: list[nn.Module] = []
        inputs = 24
        for first, second in widths:
            stages.append(
                nn.Sequential(
                    nn.Conv2d(inputs, first, 3, 1, 1, bias=False),
                    nn.MaxPool2d(2),
                    nn.BatchNorm2d(first),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(first, second, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(second),
                    nn.ReLU(inplace=True),
                )
            )
            inputs = second
        self.stages = nn.Sequential(*stages)
        self.num_features = inputs
        self.fc = nn.Linear(inputs, num_classes)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Whiten patches as those of images float (n, 3, h, w) are."""
        if self.whitened:
            axes = whitening(x)
            self.patches.copy_(torch.cat((axes, -axes)))

    def forward_features(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(F.relu(F.conv2d(x, self.patches, self.bias), inplace=True))
        return out


def whitening(x: Tensor, floor: float = 5e-4) -> Tensor:
    """The principal axes of the 2x2 patches of images float (n, 3, h, w), those of most variance
    first, each divided by the root of its variance + ``floor``: (12, 3, 2, 2).
    """
    patches = F.unfold(x, 2).transpose(1, 2).flatten(0, 1)
    variances, axes = torch.linalg.eigh(patches.T.cov().double())
    scaled = axes / (variances + floor).sqrt()
    whitened: Tensor = scaled.T.flip(0).float().view(12, 3, 2, 2)
    return whitened


class T2TViT(Pooled):
    """Tokens-to-token ViT (Yuan et al. 2021, https://arxiv.org/abs/2101.11986): three soft splits
    gather overlapping patches into tokens, with a transformer layer of width 64 after each of the
    first two; a ViT with sinusoidal positions and a class token follows.

    From 64 pixels on, 16 of them make a token, as in the paper (224 pixels). Smaller images have 4
    pixels a token, 64 tokens at 32 pixels, where the paper's strides would leave 4. Patches are
    projected to 64 before a token layer, not inside its attention.
    """

    def __init__(
        self, depth: int, width: int, heads: int, mlp_ratio: float, num_classes: int
    ) -> None:
        super().__init__()
        layers = [
            nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, 64), Block(64, 1, mlp_ratio=1.0))
            for seen in (3 * 7**2, 64 * 3**2)
        ]
        self.splits = nn.ModuleList([*layers, nn.Linear(64 * 3**2, width)])
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads, mlp_ratio) for _ in range(depth)), nn.LayerNorm(width)
        )
        self.num_features = width
        self.fc = nn.Linear(width, num_classes)
        self.apply(init_weights_vit_timm)

    def forward_features(self, x: Tensor) -> Tensor:
        strides = (2, 2, 1) if x.shape[-1] < 64 else (4, 2, 2)
        for layer, kernel, stride in zip(self.splits, (7, 3, 3), strides, strict=True):
            grid = [(side - 1) // stride + 1 for side in x.shape[-2:]]
            x = (
                layer(F.unfold(x, kernel, padding=kernel // 2, stride=stride).transpose(1, 2))
                .transpose(1, 2)
                .unflatten(2, grid)
            )
        tokens = x.flatten(2).transpose(1, 2) + build_sincos2d_pos_embed(
            grid, self.num_features, device=x.device
        )
        out: Tensor = self.blocks(torch.cat((self.token.expand(len(x), -1, -1), tokens), 1))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        out: Tensor = x[:, 0] if pre_logits else self.fc(x[:, 0])
        return out


def _wide(depth: int, widen: int, num_classes: int) -> PreActNet:
    """Wide residual network (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146),
    initialised by He's rule as in CBD's release.
    """
    net = PreActNet(
        (16 * widen, 32 * widen, 64 * widen), (depth - 4) // 6, 16, num_classes, final_norm=True
    )
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return net


@register_model
def cnn5(pretrained: bool = False, num_classes: int = 10, **_: Any) -> PlainNet:
    """A small network for small images on a CPU, of the demo: 128 features, 278 thousand
    parameters.
    """
    return PlainNet(((32, 2), (64, 1), (64, 2), (128, 1), (128, 2)), num_classes)


@register_model
def fastnet(pretrained: bool = False, num_classes: int = 10, **_: Any) -> FastNet:
    """The network of the protocol ``fast``: 256 features, 1.1 million parameters."""
    return FastNet(FAST_WIDTHS, num_classes)


@register_model
def fastnet_unwhitened(pretrained: bool = False, num_classes: int = 10, **_: Any) -> FastNet:
    """``fastnet`` with a first layer that is trained: 256 features, 1.1 million parameters."""
    return FastNet(FAST_WIDTHS, num_classes, whitened=False)


@register_model
def fastnet_l(pretrained: bool = False, num_classes: int = 10, **_: Any) -> FastNet:
    """A wider one, for a GPU: 256 features, 2.0 million parameters."""
    return FastNet(((64, 64), (256, 256), (256, 256)), num_classes)


@register_model
def wrn16_1(pretrained: bool = False, num_classes: int = 10, **_: Any) -> PreActNet:
    """CBD's network for CIFAR-10 and GTSRB: 64 features, 175 thousand parameters."""
    return _wide(16, 1, num_classes)


@register_model
def wrn40_1(pretrained: bool = False, num_classes: int = 10, **_: Any) -> PreActNet:
    """CBD's larger network, table 6."""
    return _wide(40, 1, num_classes)


@register_model
def t2t_vit_14(pretrained: bool = False, num_classes: int = 10, **_: Any) -> T2TViT:
    """The network of CBD's table 7: 384 features, 21 million parameters."""
    return T2TViT(14, 384, 6, 3.0, num_classes)


@register_model
def preactresnet18(pretrained: bool = False, num_classes: int = 10, **_: Any) -> PreActNet:
    """BackdoorBench's default network (no BatchNorm before the pooling), initialised by PyTorch's
    defaults as it is there.
    """
    return PreActNet((64, 128, 256, 512), 2, 64, num_classes, final_norm=False)


@register_model
def resnet18_cifar(pretrained: bool = False, num_classes: int = 10, **_: Any) -> nn.Module:
    """MCCI's network for CIFAR-10: ResNet-18 with a 3x3 stem of stride 1 and no max-pooling.

    Initialised by PyTorch's defaults, as in MCCI's release and this field's other copies of it;
    timm's own start closes every residual block, and Adadelta at MCCI's rate hardly opens them: the
    AIN, which starts as PyTorch has it, then learns the classes in its place
    (docs/results/mcci-table1.md).
    """
    net = cast(Any, ResNet)(BasicBlock, (2, 2, 2, 2), num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            m.reset_parameters()
    return cast(nn.Module, net)

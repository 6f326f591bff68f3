"""Networks, by timm's names; the small ones of this field are registered in timm beside its own;
``torchvision:NAME`` is torchvision's.

A name with one of timm's tags (``tf_efficientnet_b0.aa_in1k``) starts from the weights of that tag,
one without starts untrained. Every network keeps timm's contract: ``forward_features``,
``forward_head(..., pre_logits=True)``, ``num_features``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load, save
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from .errors import InputError, nearest

OURS = ("cnn5", "wrn16_1", "wrn40_1", "t2t_vit_14", "resnet18_cifar", "preactresnet18")


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
    AIN, which starts as PyTorch has it, then learns the classes in its place (docs/results.md).
    """
    net = cast(Any, ResNet)(BasicBlock, (2, 2, 2, 2), num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            m.reset_parameters()
    return cast(nn.Module, net)


class TorchvisionNet(nn.Module):
    """A network of torchvision's that ends in a linear layer, by timm's contract, untrained."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        # its vision transformers have one
        side = getattr(self.net, "image_size", 0)
        self.pretrained_cfg = {"fixed_input_size": side > 0, "input_size": (3, side, side)}
        self.classifier, last = list(self.net.named_modules())[-1]
        if not isinstance(last, nn.Linear):
            raise InputError(
                f"torchvision's {name} does not end in a linear layer: it has no embedding that "
                "defenses can work on"
            )
        self.net.set_submodule(self.classifier, nn.Identity())
        self.fc = last
        self.num_features = last.in_features

    def forward_features(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        out: Tensor = x if pre_logits else self.fc(x)
        return out

    def get_classifier(self) -> nn.Linear:
        return self.fc


def create(name: str, outputs: int, pretrained: bool = False) -> Any:
    """A network by name, with as many outputs; ``pretrained``: from the weights of the name's tag,
    if it has one (the last layer is always new).

    Raises:
        InputError: a network of torchvision's that does not end in a linear layer; weights that
            cannot be fetched.
    """
    place, colon, own = name.partition(":")
    if colon and place == "torchvision":
        return TorchvisionNet(own, outputs)
    try:
        return timm.create_model(name, pretrained=pretrained and "." in name, num_classes=outputs)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the weights of {name} could not be fetched ({reason}); {name.partition('.')[0]}, "
            "without the tag, starts untrained"
        ) from error


class Net(nn.Module):
    """A timm network behind its input normalisation: float images in [0, 1] -> logits.

    A network that insists on a size, as vision transformers do, sees images of another size scaled
    to it (bilinear), as in BackdoorBench. ``features`` gives the embedding of the penultimate layer
    (n, num_features), ``head`` the logits (n, outputs) of embeddings.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        outputs: int,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, 3, 1, 1) if mean is not None else None)
        self.register_buffer("std", std.view(1, 3, 1, 1) if std is not None else None)
        self.backbone = create(name, outputs, pretrained)
        self.num_features: int = self.backbone.num_features
        told = getattr(self.backbone, "pretrained_cfg", {})
        self.side: int | None = told["input_size"][-1] if told.get("fixed_input_size") else None

    def features(self, x: Tensor) -> Tensor:
        if self.mean is not None:
            x = (x - self.mean) / self.std
        if self.side and x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear")
        out: Tensor = self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)
        return out

    def head(self, z: Tensor) -> Tensor:
        out: Tensor = self.backbone.get_classifier()(z)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Watch:
    """Keeps what the named modules of a network put out."""

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        self.seen: dict[str, Tensor] = {}
        modules = dict(net.named_modules())
        self._hooks = [modules[name].register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.seen[name] = output

        return keep

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def last_stages(net: nn.Module, x: Tensor, stages: int = 3) -> list[str]:
    """The last module at each of the lowest ``stages`` resolutions above one pixel.

    Raises:
        InputError: there is no second resolution, as in vision transformers.
    """
    watch = Watch(net, [name for name, _ in net.named_modules() if name])
    sides: dict[int, str] = {}
    net(x)
    watch.end()
    for name, output in watch.seen.items():
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
            sides[output.shape[-1]] = name
    if len(sides) < 2:
        raise InputError(
            "the network keeps one resolution, as vision transformers do: there are no stages "
            "whose attention maps could be compared"
        )
    return [sides[side] for side in sorted(sides, reverse=True)[-stages:]]


def check(name: str) -> None:
    """Raises: InputError: timm (or torchvision) does not know the network or its tag; the nearest
    name, and ours, or the tags are in the message.
    """
    place, colon, own = name.partition(":")
    if colon and place == "torchvision":
        known = torchvision.models.list_models(torchvision.models)
        if own not in known:
            raise nearest(own, known, "models of torchvision")
    elif not timm.is_model(name):
        near = nearest(name, timm.list_models(), "models")
        raise InputError(
            str(near).partition(" Known:")[0]
            + f" Ours: {', '.join(OURS)}; and all of timm's, and torchvision:NAME."
        )
    elif "." in name and not timm.is_model_pretrained(name):
        bare, _, tag = name.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]
        raise InputError(
            f"timm has no weights {tag!r} of {bare}; "
            + (f"its tags: {', '.join(tags)}" if tags else f"it has none: {bare} starts untrained")
        )


def pack(net: nn.Module, model: str) -> bytes:
    """A network as a safetensors file, whose metadata name its class and ``model``, the protocol's
    network.
    """
    outputs = net.backbone.get_classifier().out_features if isinstance(net, Net) else ""
    return save(
        {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()},
        {"class": type(net).__name__, "model": model, "outputs": str(outputs)},
    )


def unpack(data: bytes) -> tuple[Net, str] | None:
    """The network of a file of ``pack``'s, in eval mode, and its name; None for networks that only
    their defense can build, such as MCCI's pair.
    """
    length = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + length])["__metadata__"]
    if told["class"] != Net.__name__:
        return None
    state = load(data)
    moments = (state["mean"].flatten(), state["std"].flatten()) if "mean" in state else ()
    net = Net(told["model"], int(told["outputs"]), *moments)
    net.load_state_dict(state)
    return net.eval(), told["model"]


def parameters(net: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)

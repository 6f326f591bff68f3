"""Networks by timm's names, ours among them; ``torchvision:NAME`` is torchvision's.

A name with one of timm's tags (``tf_efficientnet_b0.aa_in1k``) starts from the weights of that tag,
one with ``@`` from those of a file (``weights``), one without starts untrained. timm's own options
stand in brackets: ``vit_small_patch14_dinov2[img_size=224]``. timm and torchvision are imported
when a network is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from . import weights
from .errors import InputError, nearest, reason
from .protocols import NETWORKS, Recipe
from .registry import parse


class TorchvisionNet(nn.Module):
    """A network of torchvision's that ends in a linear layer, by timm's contract, untrained."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        import torchvision

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


def known() -> Any:
    """timm, which knows our networks, too."""
    import timm

    from . import networks  # noqa: F401

    return timm


def taken_apart(model: str) -> tuple[str, dict[str, Any], str]:
    """A network's name, timm's options in its brackets, and which weights of a file it starts from,
    "" for none.
    """
    network, _, wanted = model.partition("@")
    return *parse(network), wanted


def create(model: str, outputs: int, pretrained: bool = False) -> Any:
    """A network by name, with as many outputs; ``pretrained``: from the weights of the name's tag
    or file, if it has one (the last layer is always new).

    Raises:
        InputError: a network of torchvision's that does not end in a linear layer; weights that
            cannot be fetched, or that do not fit.
    """
    name, options, wanted = taken_apart(model)
    net = _bare(name, options, outputs, pretrained and "." in name)
    if pretrained and wanted:
        weights.start(net, weights.find(wanted))
    return net


def _bare(name: str, options: dict[str, Any], outputs: int, pretrained: bool) -> Any:
    place, colon, own = name.partition(":")
    if colon and place == "torchvision":
        return TorchvisionNet(own, outputs)
    timm = known()
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=outputs, **options)
    except OSError as error:
        raise InputError(
            f"the weights of {name} could not be fetched ({reason(error)}); "
            f"{name.partition('.')[0]}, without the tag, starts untrained"
        ) from error
    # whatever a network's own code makes of options that are not its own
    except Exception as error:
        if not options:
            raise
        raise InputError(f"{name} cannot be made with {options}: {reason(error)}") from error


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
        self.name = name
        self.register_buffer("mean", mean.view(1, 3, 1, 1) if mean is not None else None)
        self.register_buffer("std", std.view(1, 3, 1, 1) if std is not None else None)
        self.backbone = create(name, outputs, pretrained)
        # in a score of timm's networks the features before the classifier are not ``num_features``
        classifier = self.backbone.get_classifier()
        linear = isinstance(classifier, nn.Linear)
        self.num_features: int = classifier.in_features if linear else self.backbone.num_features
        told = getattr(self.backbone, "pretrained_cfg", {})
        side = told["input_size"][-1] if told.get("fixed_input_size") else None
        self.side: int | None = taken_apart(name)[1].get("img_size", side)
        self.frozen = False

    def freeze(self) -> None:
        """Train the last layer alone: all else keeps its weights, and its BatchNorms their
        statistics.
        """
        self.frozen = True
        self.requires_grad_(False)
        self.backbone.get_classifier().requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
            self.backbone.get_classifier().train(mode)
        return self

    def recompute(self) -> None:
        """Keep few activations for the backward pass, and compute the others again: less memory for
        about a third more time.

        Raises:
            InputError: the network cannot do that.
        """
        try:
            self.backbone.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise InputError("the network cannot compute its activations again") from error

    def layers(self) -> dict[str, int]:
        """How deep each parameter lies, by its name: from 0, the input's side, on.

        Raises:
            InputError: the network does not tell its layers.
        """
        from timm.models import group_parameters

        try:
            matcher = self.backbone.group_matcher(coarse=False)
        except AttributeError as error:
            raise InputError("the network does not tell its layers, for rates by layer") from error
        groups = group_parameters(self.backbone, matcher)
        return {f"backbone.{name}": layer for layer, own in groups.items() for name in own}

    @property
    def starts_from_images(self) -> bool:
        """Whether the network takes something from training images before it is trained."""
        return hasattr(self.backbone, "start")

    def start(self, x: Tensor) -> None:
        """Have it take that from images float (n, 3, h, w) in [0, 1]."""
        self.backbone.start(self._scaled(x))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.mean is None else (x - self.mean) / self.std

    def features(self, x: Tensor) -> Tensor:
        x = self._scaled(x)
        if self.side and x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear")
        out: Tensor = self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)
        return out

    def head(self, z: Tensor) -> Tensor:
        out: Tensor = self.backbone.get_classifier()(z)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def norms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorms of a network."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """Passes inside do not move the running statistics of BatchNorm."""
    momenta = [(norm, norm.momentum) for norm in norms(net)]
    for norm, _ in momenta:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum


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
    """The stages that end at each of the lowest ``stages`` resolutions above one pixel, by name.

    Of a resolution it is the last module that holds several convolutions, which is a stage or a
    block, as it puts out: in pre-activation networks before the next norm. Without such a module it
    is the last convolution.

    Raises:
        InputError: there is no second resolution, as in vision transformers.
    """
    convolutions = {
        name: sum(isinstance(inner, nn.Conv2d) for inner in module.modules())
        for name, module in net.named_modules()
        if name
    }
    watch = Watch(net, [name for name, count in convolutions.items() if count])
    net(x)
    watch.end()
    sides: dict[int, str] = {}
    for name, output in watch.seen.items():
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
            before = convolutions[sides.get(output.shape[-1], name)]
            if before == 1 or convolutions[name] > 1:
                sides[output.shape[-1]] = name
    if len(sides) < 2:
        raise InputError(
            "the network keeps one resolution, as vision transformers do: there are no stages "
            "whose attention maps could be compared"
        )
    return [sides[side] for side in sorted(sides, reverse=True)[-stages:]]


def check(model: str) -> None:
    """Raises: InputError: timm (or torchvision) does not know the network or its tag; the nearest
    name, and ours, or the tags are in the message.
    """
    name, options, wanted = taken_apart(model)
    if options and (name in NETWORKS or ":" in name):
        raise InputError(f"{model}: only networks of timm's have options")
    if wanted and "." in name:
        raise InputError(f"{model}: a tag's weights, or those of a file, not both")
    place, colon, own = name.partition(":")
    if colon and place == "torchvision":
        import torchvision

        theirs = torchvision.models.list_models(torchvision.models)
        if own not in theirs:
            raise nearest(own, theirs, "models of torchvision")
        return
    timm = known()
    if not timm.is_model(name):
        near = nearest(name, timm.list_models(), "models")
        raise InputError(
            str(near).partition(" Known:")[0]
            + f" Ours: {', '.join(NETWORKS)}; and all of timm's, and torchvision:NAME."
        )
    if "." in name and not timm.is_model_pretrained(name):
        bare, _, tag = name.partition(".")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{bare}.*")]
        raise InputError(
            f"timm has no weights {tag!r} of {bare}; "
            + (f"its tags: {', '.join(tags)}" if tags else f"it has none: {bare} starts untrained")
        )


def check_start(model: str) -> weights.Match | None:
    """What a network takes of the file that it starts from; None if it starts from none.

    Raises:
        InputError: no such file was offered, or it does not fit.
    """
    _, _, wanted = model.partition("@")
    return _taken(model, weights.find(wanted)) if wanted else None


@lru_cache(maxsize=16)
def _taken(model: str, file: Path) -> weights.Match:
    return weights.start(create(model, 10), file)


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

    Raises:
        InputError: damaged.
    """
    try:
        # also looks whether the header is sound
        state = load(data)
        length = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + length])["__metadata__"]
        if told["class"] != Net.__name__:
            return None
        moments = (state["mean"].flatten(), state["std"].flatten()) if "mean" in state else ()
        net = Net(told["model"], int(told["outputs"]), *moments)
        net.load_state_dict(state)
    # whatever damaged bytes bring about
    except Exception as error:
        raise InputError(f"not a network of ours ({reason(error)})") from error
    return net.eval(), told["model"]


def _check_embedding(net: Net, x: Tensor) -> None:
    """Raises: ValueError: it is not what one linear layer makes the logits of."""
    z = net.features(x)
    if z.shape != (len(x), net.num_features):
        raise ValueError(f"its embedding has the shape {tuple(z.shape[1:])}")
    logits = net.head(z)
    if not isinstance(net.backbone, TorchvisionNet):
        seen = F.interpolate(x, (net.side, net.side), mode="bilinear") if net.side else x
        if not torch.allclose(logits, net.backbone(seen), atol=1e-4):
            raise ValueError("its logits are not one linear layer of its embedding")


@lru_cache(maxsize=64)
def check_use(name: str, classes: int, height: int, width: int) -> None:
    """Try a network on two images, forward, and in training backward.

    Raises:
        InputError: it does not take images of that size, or has no embedding of ``num_features``
            that one linear layer makes its logits of, which defenses work on.
    """
    if name in NETWORKS:
        return
    net = Net(name, classes)
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            _check_embedding(net.eval(), x)
        net.train()(x).sum().backward()
    # whatever a network's own code brings about
    except Exception as error:
        raise InputError(
            f"{name} cannot be used on images of {width}x{height}: {reason(error)}"
        ) from error


def check_recipe(name: str, recipe: Recipe) -> None:
    """Whether a network can keep few activations or have a rate for each layer, where the recipe
    wants that.

    Raises:
        InputError: it cannot.
    """
    try:
        if recipe.recompute:
            shell(name, 10).recompute()
        if recipe.layer_decay < 1:
            shell(name, 10).layers()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def shell(name: str, outputs: int) -> Net:
    """A network that takes no memory, for the shapes of its tensors."""
    try:
        with torch.device("meta"):
            return Net(name, outputs)
    except NotImplementedError:
        # torchvision's RegNets compute while they are built
        return Net(name, outputs)


@lru_cache(maxsize=64)
def size(name: str) -> int:
    """Numbers in a network with ten outputs."""
    return sum(tensor.numel() for tensor in shell(name, 10).state_dict().values())


def parameters(net: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)

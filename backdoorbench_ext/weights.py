"""Weights of a user's file for networks to start from: ``tf_efficientnet_lite0@NAME-DIGEST``.

What stands behind the ``@`` tells which weights they are, by the file's name and its SHA-256; where
the file lies is said with ``--weights``, and decides nothing.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from .errors import InputError, told
from .reading import content, place, regular

# bytes of a file
LARGEST = 2**33
# files that hold tensors in an order of their own
TENSORS = ".safetensors"
# what others wrap a state dict in
WRAPPED = ("state_dict", "model_state_dict", "model")
# the files of this process by the names of their weights
_files: dict[str, Path] = {}


def offer(file: Path) -> str:
    """Let networks start from a file.

    Returns:
        What its weights are called: the file's name and ten hexadecimal digits of its SHA-256.

    Raises:
        InputError: it cannot be read.
    """
    file = place(file)
    regular(file)
    stem = re.sub(r"[^\w.-]", "_", file.stem)[:60]
    name = f"{stem}-{_digits(file, file.stat().st_mtime_ns)}"
    _files[name] = file
    return name


@lru_cache(maxsize=16)
def _digits(file: Path, when: int) -> str:
    return hashlib.sha256(content(file, LARGEST)).hexdigest()[:10]


def named(file: Path | None, model: str | None, asked: str) -> str | None:
    """The name of a network that starts from a file.

    Args:
        file: the file; None for ``model`` as it is.
        model: the network that is to start from it; None where it is ``asked`` for.
        asked: a grid's own network.

    Raises:
        InputError: the file cannot be read, is not the one that the grid asks for, or it is not
            said which network is to start from it.
    """
    if file is None:
        return model
    name = offer(file)
    if model:
        return f"{model}@{name}"
    _, _, wanted = asked.partition("@")
    if not wanted:
        raise InputError("--weights goes with --model: say which network they are of")
    if wanted != name:
        raise InputError(f"{file}: its weights are {name}, the grid starts from {wanted}")
    return None


def find(name: str) -> Path:
    """The file of weights by what they are called.

    Raises:
        InputError: no such file was offered.
    """
    # a file may have changed since
    if name not in _files or offer(_files[name]) != name:
        stem, _, digits = name.rpartition("-")
        raise InputError(
            f"the network starts from weights {stem!r}: give --weights FILE, the file whose "
            f"SHA-256 begins with {digits}"
        )
    return _files[name]


@dataclass(frozen=True)
class Match:
    """Which tensors of a network come from which of a file.

    Args:
        pairs: the network's name of a tensor -> the file's.
        by_name: whether they were found by their names, otherwise by their order.
        fresh: the network's tensors that start anew: those of its last layer.
        unused: the file's that have no place in the network.
    """

    pairs: Mapping[str, str]
    by_name: bool
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        ours, theirs = next(iter(self.pairs.items()))
        how = "their names" if self.by_name else f"their order, {theirs} as {ours} and so on"
        words = f"{len(self.pairs)} tensors by {how}; new: {', '.join(self.fresh) or 'none'}"
        if self.unused:
            words += f"; not used: {', '.join(self.unused[:4])}"
            words += f" and {len(self.unused) - 4} more" if len(self.unused) > 4 else ""
        return words


def start(net: nn.Module, file: Path) -> Match:
    """Take the weights of a file into a network of timm's contract, but those of its last layer.

    Raises:
        InputError: no tensors that can be read safely, or not those of this network; the first
            difference is named.
    """
    given = read(file)
    try:
        match = matched(net, given, ordered=file.suffix != TENSORS)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    own = net.state_dict()
    net.load_state_dict(own | {ours: given[theirs] for ours, theirs in match.pairs.items()})
    return match


def matched(net: nn.Module, given: Mapping[str, Tensor], *, ordered: bool = True) -> Match:
    """Pair tensors by name if all of the network's names are there, otherwise by their order, if
    they are ``ordered`` as the network that they were saved from.

    Counters of BatchNorm do not count. The shapes must be equal but in the last layer.

    Raises:
        InputError: they do not fit.
    """
    own = {name: t for name, t in net.state_dict().items() if not _counter(name)}
    theirs = {name: t for name, t in given.items() if not _counter(name)}
    last = _last_layer(net)
    body = [name for name in own if name not in last]
    by_name = all(name in theirs for name in body)
    if by_name:
        pairs = {name: name for name in body}
    elif not ordered:
        raise InputError(
            f"it lacks {next(name for name in body if name not in theirs)}, and {TENSORS} files "
            "have no order to go by: another architecture, or save the state with torch.save"
        )
    else:
        # a file without a last layer has the body alone
        names = body if len(theirs) == len(body) else list(own)
        if len(theirs) != len(names):
            raise InputError(
                f"{len(theirs)} tensors, the network has {len(own)}, and they bear other names: "
                "another architecture"
            )
        pairs = {o: t for o, t in zip(names, theirs, strict=True) if o not in last}
    for ours, other in pairs.items():
        if own[ours].shape != theirs[other].shape:
            raise InputError(
                f"its {other} has the shape {tuple(theirs[other].shape)}, the network's {ours} "
                f"{tuple(own[ours].shape)}: another architecture, or images of another size"
            )
    # a last layer is left out on purpose
    taken = {*pairs.values(), *last} if by_name else {*theirs}
    unused = tuple(name for name in theirs if name not in taken)
    return Match(pairs, by_name, tuple(name for name in own if name in last), unused)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, by name: a ``.safetensors`` file or one of ``torch.save``'s, of
    which nothing but tensors and plain containers is let through.

    Raises:
        InputError: not a regular file, damaged, or something else than finite tensors.
    """
    regular(file)
    return dict(_read(file, file.stat().st_mtime_ns))


@lru_cache(maxsize=1)
def _read(file: Path, when: int) -> Mapping[str, Tensor]:
    data = content(file, LARGEST)
    try:
        made: Any = (
            load(data)
            if file.suffix == TENSORS
            else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        )
    # whatever damaged or foreign bytes bring about
    except Exception as error:
        raise InputError(
            f"{file}: no weights that can be read safely, as torch.save(net.state_dict()) writes "
            f"them ({told(error)})"
        ) from error
    for key in WRAPPED:
        if isinstance(made, Mapping) and isinstance(made.get(key), Mapping):
            made = made[key]
    if not isinstance(made, Mapping) or not made:
        raise InputError(f"{file}: holds no tensors by name")
    tensors = {}
    for name, value in made.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{file}: its {name!r} is no tensor: save the state dict alone")
        if not value.isfinite().all():
            raise InputError(f"{file}: its {name!r} holds numbers that are not finite")
        tensors[str(name).removeprefix("module.")] = value
    return tensors


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _last_layer(net: Any) -> set[str]:
    """The names of the tensors of a network's last layer."""
    last = net.get_classifier()
    own = next(name for name, module in net.named_modules() if module is last)
    return {f"{own}.{name}" for name in last.state_dict()}

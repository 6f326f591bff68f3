"""Devices: which one, what it computes in, and how a CPU keeps its memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is the GPU if there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {why}") from error
    return device


def cores() -> int:
    """Cores that this process may use: fewer than the machine has, where a scheduler or a container
    says so.
    """
    # SciPy's and scikit-learn's: knows affinity and control groups
    from joblib import cpu_count

    return max(1, int(cpu_count()))


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 faster than float32 (docs/speed.md): of CPUs those with AMX,
    and AMD's with AVX-512's bf16.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # from PyTorch 2.11 on
    can: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    amd = bool(can.get("avx512_bf16")) and can.get("cpu_name", "").startswith("AMD")
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or amd)


def one_pixel_strides(net: nn.Module, image: Tensor) -> bool:
    """Whether a convolution of a network strides over a map of a single pixel.

    There oneDNN's bf16 kernels (PyTorch 2.14) leave the gradient of the weights that see nothing
    but padding as the memory was, NaN at times.

    Args:
        net: in any mode; it is left as it was.
        image: one image (1, 3, H, W) as the network takes it.
    """
    found: list[bool] = []

    def look(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        one_pixel = inputs[0].shape[-2:].numel() == 1
        found.append(one_pixel and max(conv.stride) > 1 and max(conv.kernel_size) > 1)  # type: ignore[arg-type]

    hooks = [
        layer.register_forward_pre_hook(look)
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    training = net.training
    with torch.inference_mode():
        net.eval()(image)
    net.train(training)
    for hook in hooks:
        hook.remove()
    return any(found)


def keep_memory() -> None:
    """Have glibc keep what is freed, instead of giving it back and getting it again page by page:
    large tensors on a CPU are made several times as fast.
    """
    # musl has none
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
        for option, size in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(option, size)

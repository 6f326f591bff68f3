"""ELU, fast in bf16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# images whose float32 stays in a core's cache, at the sizes of the AIN
PART = 8


class ELU(nn.ELU):
    """``nn.ELU``, several times as fast in bf16 on a CPU.

    PyTorch's takes ``expm1`` of each number, which its CPU kernel computes some twenty times as
    slowly as ``exp``. In float32 ``exp(x) - 1`` is off by 6e-8, which bf16 does not show: of a
    million numbers one or two round the other way. Gradients are PyTorch's, bit by bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of any shape, the first dimension of at least one; the same dtype and layout."""
        if x.dtype is torch.bfloat16 and x.device.type == "cpu" and self.alpha == 1:
            out: Tensor = _InParts.apply(x)
            return out
        return super().forward(x)


class _InParts(torch.autograd.Function):
    """ELU in float32, a few images at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        for part, made in zip(x.split(PART), out.split(PART), strict=True):
            whole = part.float()
            # below zero it is the larger one of the two
            made.copy_(torch.maximum(whole, whole.clamp(max=0).exp_().sub_(1)))
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out: Tensor = torch.ops.aten.elu_backward(slope, 1, 1, 1, False, x)
        return out

"""A GPU that is not there: tensors on it are CPU tensors in a coat. Like a GPU it refuses what
mixes devices, and counts how often the CPU waits for it.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "elsewhere"
aten = torch.ops.aten
MOVES = (aten.copy_.default, aten._to_copy.default)
READS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
)
# whose indices may lie on the CPU
INDEXES = (
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
)


class Elsewhere(Tensor):
    """A tensor whose device is not that of its memory, ``inner``."""

    @staticmethod
    def __new__(cls, inner):
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the mode")

    def tolist(self):
        return self.inner.tolist()

    def __repr__(self):
        return f"elsewhere {self.inner!r}"


class Device(TorchDispatchMode):
    """While it is on, ``NAME`` is a device; ``waits`` counts blocking copies to or from it and
    values of its tensors that are read.
    """

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, Elsewhere)]
        # a GPU takes single numbers of the CPU
        here = [t for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
        if func in INDEXES and isinstance(args[0], Elsewhere):
            here = [
                t
                for t in (args[0], *args[2:3])
                if isinstance(t, Tensor) and not isinstance(t, Elsewhere) and t.dim()
            ]
        if there and here and func not in MOVES:
            raise RuntimeError(
                f"{func} of tensors on two devices: "
                + ", ".join(f"{t.device} {tuple(t.shape)}" for t in tensors)
            )
        device = kwargs.get("device")
        out_there = bool(there) if device is None else torch.device(device).type == NAME
        if func is aten.copy_.default:
            out_there = isinstance(args[0], Elsewhere)
        if out_there and kwargs.get("generator"):
            raise RuntimeError(f"{func}: a generator of the CPU for a tensor elsewhere")
        masked = func in INDEXES and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if there and (func in READS or masked):
            self.waits += 1
        if func in MOVES and len({isinstance(t, Elsewhere) for t in tensors} | {out_there}) == 2:
            self.waits += not (kwargs.get("non_blocking") or args[2:] == (True,))
        coats = {id(t.inner): t for t in there}
        bare, options = tree_map(
            lambda t: t.inner if isinstance(t, Elsewhere) else t, (args, kwargs)
        )
        if device is not None:
            options["device"] = torch.device("cpu")

        def dressed(t):
            return (
                coats.get(id(t), Elsewhere(t) if out_there else t) if isinstance(t, Tensor) else t
            )

        return tree_map(dressed, func(*bare, **options))


KNOWN = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
# before the first backward pass of the process, which counts the devices
if KNOWN:

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self):
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())


@contextmanager
def device():
    """The device, for as long as this lasts; skips the test where PyTorch knows no devices written
    in Python.
    """
    if not KNOWN:
        pytest.skip("this PyTorch has no devices written in Python")
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    # a parameter on the CPU cannot become one elsewhere in place
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Device() as found:
            yield found
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)

"""Steps of a training on a GPU that are recorded once as a CUDA graph and replayed: a small
network's kernels take less time than their launches do.

They are replayed only on a machine where ``try_out`` has seen that replayed trainings end where
others do (``bbx doctor --gpu``); what it saw is kept in a file of the user's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from . import registry
from .files import write_text

# steps that run before one is recorded: libraries choose their algorithms, optimizers make their
# state
WARM_UP = 3


class Replayed:
    """A step as a function of tensors: run at first, then recorded, then replayed.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Kernels alone are replayed:
    the step must do the same work each time, wait for nothing and draw no chance on the CPU; what
    it reads and writes beside its inputs must stay where it is. Inputs of other shapes than those
    recorded are run.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step = step
        self.calls = 0
        self.inputs: tuple[Tensor, ...] = ()
        self.output = torch.empty(0)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the step gives; overwritten by the next call."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up(inputs)
        if self.graph is None:
            self._record(inputs)
        if any(own.shape != given.shape for own, given in zip(self.inputs, inputs, strict=True)):
            return self.step(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        assert self.graph is not None
        self.graph.replay()
        return self.output

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """On a stream of its own, as recording will be."""
        here = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            output = self.step(*inputs)
        here.wait_stream(side)
        return output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(given.clone() for given in inputs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self.step(*self.inputs)


def word(device: torch.device) -> tuple[Path, str]:
    """The file that says whether steps may be replayed, and for which GPU, software and code."""
    what = [
        torch.cuda.get_device_name(device),
        torch.__version__,
        str(torch.version.cuda),
        registry.fingerprint(),
    ]
    return user_cache_path("backdoorbench_ext") / "graphs.json", " | ".join(what)


def _said(file: Path) -> dict[str, bool]:
    """What was kept of other trials; nothing where there is no file, or none that can be read."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


@lru_cache
def allowed(device: torch.device) -> bool:
    """Whether steps are replayed on a device: on a GPU on which that was tried out, with this
    software and this code.
    """
    if device.type != "cuda":
        return False
    file, what = word(device)
    return _said(file).get(what) is True


def keep_word(device: torch.device, passed: bool) -> Path:
    """Write what came of trying out, beside what was written for other GPUs, and where."""
    file, what = word(device)
    write_text(file, json.dumps(_said(file) | {what: passed}, indent=1) + "\n")
    allowed.cache_clear()
    return file

"""A step of a training on a GPU, recorded once as a CUDA graph and replayed: a small network's kernels take less time than their launches do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps that are run before one is recorded: libraries choose their algorithms and optimizers make their state


class Replayed:
    """A step as a function of its input tensors, whose shapes stay: run at first, then recorded, then replayed.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. What is replayed are the kernels alone: the step must do the same work every time,
    wait for nothing and draw no chance on the CPU; what it reads and writes beside its inputs must stay where it is.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self.step, self.calls = step, 0
        self.inputs: tuple[Tensor, ...] = ()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> None:
        self.calls += 1
        if self.calls <= WARM_UP:  # on a stream of its own, as recording will be
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                self.step(*inputs)
            here.wait_stream(side)
            return
        if self.graph is None:
            self.graph, self.inputs = torch.cuda.CUDAGraph(), tuple(t.clone() for t in inputs)
            with torch.cuda.graph(self.graph):
                self.step(*self.inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()

"""On a GPU steps are replayed as CUDA graphs: that they may be is seen on any machine, that nothing changes by it on one with a GPU (pytest -m gpu)."""

import dataclasses

import elsewhere
import pytest
import torch
from conftest import RULES, make_images
from elsewhere import NAME
from test_methods import DEFENSES, QUICK, quick
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backdoorbench_ext import engine as machinery
from backdoorbench_ext import registry
from backdoorbench_ext.engine import Engine

FIXED = ["none", "cbd", "cbd[variant=release,adversarial=0.01]", "abl", "mcci", "mcci[inference=sfrn]", "dynamic"]  # whose every step is


def trained(text, images, engine):
    """What a defense, or an attack that learns, has learned."""
    if text not in registry.modules("attacks") or text in DEFENSES:
        name, options = registry.parse(text)
        return registry.get_class("defenses", name)(**QUICK.get(name, {}), **options).fit(images, engine).state_dict()
    return quick(text).fit(images, engine)


class Ops(TorchDispatchMode):
    """Everything that is computed, with where it is and shapes in place of tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        where = {NAME if isinstance(t, elsewhere.Elsewhere) else "CPU" for t in tree_leaves(out) if isinstance(t, Tensor)}
        if not str(func).startswith("profiler"):
            leaves = (tuple(t.shape) if isinstance(t, Tensor) else t for t in tree_leaves((args, kwargs)))
            self.seen.append((str(func), where, *map(str, leaves)))
        return out


def many_at_once(engine, net, recipe):
    """As PyTorch chooses it on a GPU; fused optimizers take a rate that is a tensor on a real one only."""
    return torch.optim.Adadelta([p for p in net.parameters() if p.requires_grad], capturable=True, foreach=True)


@pytest.mark.parametrize("text", [*DEFENSES, *(text for text in FIXED if text not in DEFENSES)])
def test_what_is_replayed_is_the_same_in_every_step(text, monkeypatch):
    """The same operations of the same numbers, all on the GPU, which the CPU never waits for."""
    recorded = []

    class Watched:
        def __init__(self, step):
            self.step, self.steps = step, []
            recorded.append(self.steps)

        def __call__(self, x, y):
            before = gpu.waits
            with Ops() as ops:
                self.step(x, y)
            self.steps.append((ops.seen, gpu.waits - before))

    monkeypatch.setattr(machinery, "Replayed", Watched)
    monkeypatch.setattr(machinery, "WORTH_RECORDING", 0)
    monkeypatch.setattr(machinery, "REPLAYING", {NAME})
    monkeypatch.setattr(Engine, "_optimizer", many_at_once)
    with elsewhere.device() as gpu:
        images, reserve = (make_images(n, seed=n).to(NAME) for n in (80, 40))
        trained(text, images, Engine(RULES, images, reserve, seed=3, device=NAME))
    assert text not in FIXED or len(recorded[-1]) > 2
    for _, *rest in (steps for steps in recorded if len(steps) > 1):  # the first step makes the optimizer's state
        ops, waits = rest[0]
        assert waits == 0, "the CPU waits for the GPU"
        assert not [op for op in ops if "CPU" in op[1]], "a replay would repeat what the CPU gave at first"
        assert all(later == rest[0] for later in rest)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adadelta"])
@pytest.mark.parametrize("text", FIXED)
def test_replayed_steps_train_as_others_do(text, optimizer, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(machinery, "WORTH_RECORDING", 0)
    recipe = dataclasses.replace(RULES.recipe, optimizer=optimizer, lr=0.01, schedule="one-cycle", epochs=2)
    rules = dataclasses.replace(RULES, recipe=recipe)
    images, reserve = (make_images(n, seed=n).to("cuda") for n in (160, 8))
    ends = []
    for replaying in ((), {"cuda"}, ()):
        monkeypatch.setattr(machinery, "REPLAYING", replaying)
        engine = Engine(rules, images, reserve, seed=3, device="cuda")
        engine.bf16 = False
        ends.append(torch.cat([value.flatten() for value in trained(text, images, engine).values() if value.is_floating_point()]))
    replayed, again = (float((end - ends[0]).norm() / ends[0].norm()) for end in ends[1:])
    print(f"{text} by {optimizer}: replayed weights are {replayed:.1e} apart, of another run {again:.1e}")
    assert replayed < 1e-3 + 5 * again

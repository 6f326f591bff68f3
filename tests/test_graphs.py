"""On a GPU steps are replayed as CUDA graphs: that they can be is seen on any machine, that nothing
changes by it on one with a GPU (``pytest -m gpu -n 0``, ``bbx doctor --gpu``).
"""

import elsewhere
import pytest
import torch
from conftest import RULES, make_images
from elsewhere import NAME
from test_methods import DEFENSES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from backdoorbench_ext import engine as machinery
from backdoorbench_ext import graphs, trial
from backdoorbench_ext.cli import app
from backdoorbench_ext.contract import defense
from backdoorbench_ext.engine import Engine

# whose main training is replayed
RECORDED = ("none", "cbd", "cbd[variant=release,adversarial=0.01]", "mcci", "mcci[inference=sfrn]")


class Ops(TorchDispatchMode):
    """Everything that is computed, with where it is, and shapes in place of tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        where = {
            NAME if isinstance(t, elsewhere.Elsewhere) else "CPU"
            for t in tree_leaves(out)
            if isinstance(t, Tensor)
        }
        if not str(func).startswith("profiler"):
            leaves = (
                tuple(t.shape) if isinstance(t, Tensor) else t for t in tree_leaves((args, kwargs))
            )
            self.seen.append((str(func), where, *map(str, leaves)))
        return out


def many_at_once(recipe, groups, capturable):
    """As PyTorch chooses it on a GPU; fused optimizers take a rate that is a tensor on a real one
    only.
    """
    trained = [parameter for group in groups for parameter in group["params"]]
    return torch.optim.Adadelta(trained, capturable=True, foreach=True)


@pytest.mark.parametrize("text", sorted({*DEFENSES, *RECORDED}))
def test_what_is_replayed_is_the_same_in_every_step(text, monkeypatch):
    """The same operations of the same numbers, all on the GPU, which the CPU never waits for."""
    recorded = []

    class Watched:
        def __init__(self, step):
            self.step = step
            self.steps = []
            recorded.append(self.steps)

        def __call__(self, *inputs):
            before = gpu.waits
            with Ops() as ops:
                out = self.step(*inputs)
            self.steps.append((ops.seen, gpu.waits - before))
            return out

    monkeypatch.setattr(machinery, "Replayed", Watched)
    monkeypatch.setattr(machinery, "_made", many_at_once)
    # where it lies must not change, which is all that a graph needs of it
    monkeypatch.setattr(Engine, "_schedule", lambda *_: None)
    with elsewhere.device() as gpu:
        images, reserve = (make_images(n, seed=n).to(NAME) for n in (80, 40))
        engine = Engine(RULES, images, reserve, seed=3, device=NAME)
        engine.replays = True
        defense(text).fit(images, engine)
    assert text not in RECORDED or len(recorded[-1]) > 2
    # the first step makes the optimizer's state
    for _, *rest in (steps for steps in recorded if len(steps) > 1):
        ops, waits = rest[0]
        assert waits == 0, "the CPU waits for the GPU"
        chance = [op for op in ops if "CPU" in op[1]]
        assert not chance, f"a replay would repeat what the CPU gave at first: {chance}"
        assert all(later == rest[0] for later in rest)


def test_without_a_word_steps_are_run(images):
    engine = Engine(RULES, images)
    assert not engine.replays
    assert engine.recorded(len) is len


@pytest.fixture
def gpu_of_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    graphs.allowed.cache_clear()
    yield torch.device("cuda")
    graphs.allowed.cache_clear()


def test_the_word_is_kept_for_this_gpu_and_this_code(gpu_of_a_name, monkeypatch):
    assert not graphs.allowed(gpu_of_a_name)
    file = graphs.keep_word(gpu_of_a_name, True)
    assert graphs.allowed(gpu_of_a_name)
    for what in ("torch.cuda.get_device_name", "backdoorbench_ext.registry.fingerprint"):
        with monkeypatch.context() as other:
            other.setattr(what, lambda *_: "another")
            graphs.allowed.cache_clear()
            assert not graphs.allowed(gpu_of_a_name), what
            graphs.keep_word(gpu_of_a_name, False)
    graphs.allowed.cache_clear()
    assert graphs.allowed(gpu_of_a_name)
    file.write_text("half of a fi")
    graphs.allowed.cache_clear()
    assert not graphs.allowed(gpu_of_a_name)


def test_a_trial_sees_weights_that_are_too_far():
    assert trial.Trial("one", replayed=1e-4).passed
    assert trial.Trial("one", replayed=0.4, again=0.1).passed
    assert not trial.Trial("one", replayed=0.4, again=1e-6).passed
    assert not trial.Trial("one", error="OutOfMemoryError").passed


def test_doctor_without_a_gpu_says_so_in_a_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = CliRunner().invoke(app, ["doctor", "--gpu"])
    assert "no GPU" in str(said.exception)


@pytest.mark.parametrize("optimizer", trial.OPTIMIZERS)
def test_a_trial_trains(optimizer):
    """The trial itself, whose second training runs as the first does where nothing is replayed."""
    learned = [trial._weights("none", optimizer, torch.device("cpu"), False) for _ in range(2)]
    assert torch.equal(*learned)
    assert learned[0].isfinite().all()


@pytest.mark.gpu
def test_replayed_steps_train_as_others_do():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    trials = []
    trial.replays(torch.device("cuda"), trials.append)
    assert not [str(one) for one in trials if not one.passed]

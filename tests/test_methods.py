"""Every registered method keeps the contract; a new file is tested without a new test."""

import dataclasses
import itertools

import elsewhere
import pytest
import torch
from conftest import RULES, make_images

from backdoorbench_ext import contract, registry
from backdoorbench_ext.contract import attack, defense
from backdoorbench_ext.engine import Engine

ATTACKS = registry.modules("attacks")
DEFENSES = registry.modules("defenses")
VARIANTS = [text for name in DEFENSES for text in contract.variants(name)]


@pytest.mark.parametrize(
    ("kind", "name"), [("attacks", n) for n in ATTACKS] + [("defenses", n) for n in DEFENSES]
)
def test_file(kind, name):
    contract.file(kind, name)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("side", [32, 48])
def test_trigger(name, side):
    contract.trigger(name, side)


@pytest.mark.parametrize("name", [n for n in ATTACKS if attack(n).learns])
def test_learning(name, tmp_path):
    contract.learning(name, tmp_path)


@pytest.mark.parametrize("name", ATTACKS)
def test_poison(name):
    contract.poison(name)


@pytest.mark.parametrize("text", VARIANTS)
def test_fit(text, images):
    contract.fit(text, images)


@pytest.mark.parametrize("text", VARIANTS)
def test_a_rate_of_its_own_has_its_optimizer(text, images, monkeypatch):
    """A protocol's optimizer goes with the protocol's rate: under MCCI's Adadelta, SGD at 0.01 must
    not become Adadelta at 0.01.
    """
    seen = []
    make = Engine.optimizer

    def looked_at(self, net, recipe=None):
        seen.append(recipe or self.rules.recipe)
        return make(self, net, recipe)

    monkeypatch.setattr(Engine, "optimizer", looked_at)
    rules = dataclasses.replace(
        RULES, recipe=dataclasses.replace(RULES.recipe, optimizer="adadelta", lr=0.123)
    )
    defense(text).fit(images, Engine(rules, images, make_images(8, seed=9), seed=3))
    own = [recipe for recipe in seen if recipe.lr != 0.123]
    assert seen and (
        "optimizer" in defense(text).spec() or all(recipe.optimizer != "adadelta" for recipe in own)
    )


def test_the_other_device_is_like_a_gpu():
    with elsewhere.device() as gpu:
        x = torch.arange(3.0).to(elsewhere.NAME, non_blocking=True)
        order = torch.tensor([2, 0])
        assert (x * 2 + torch.tensor(1.0)).device.type == elsewhere.NAME and gpu.waits == 0, (
            "numbers and what is sent without blocking cost no wait"
        )
        assert x[order].tolist() == [2, 0] and gpu.waits == 0
        assert float(x.sum()) == x[x > 1].cpu() + 1 and gpu.waits == 3, "a value, a mask, a copy"
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: torch.randn(3, device=elsewhere.NAME, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match=r"two devices|generator of the CPU"):
                mixed()


@pytest.mark.parametrize(
    ("kind", "name"), [("attacks", n) for n in ATTACKS] + [("defenses", n) for n in DEFENSES]
)
def test_on_another_device(kind, name):
    """No tensor of the CPU meets one of a GPU, and within an epoch the CPU never waits for it."""
    waits = []
    with elsewhere.device() as gpu:
        clean, reserve = (make_images(n, seed=n).to(elsewhere.NAME) for n in (80, 8))
        e = Engine(
            RULES,
            clean,
            reserve,
            seed=3,
            device=elsewhere.NAME,
            progress=lambda what, *_: waits.append((what, gpu.waits)),
        )
        made = attack(name if kind == "attacks" else "badnets")
        if made.learns:
            made = made.fitted(made.fit(clean, e))
        bad = made.poison(clean, target=1, rate=0.1, rng=torch.Generator().manual_seed(0))
        if made.refines:
            bad.x[bad.mask] = made.refine(clean, bad, e)
        test = made.test_set(clean, 1)
        assert {bad.x.device.type, test.x.device.type, test.true.device.type} == {elsewhere.NAME}
        if kind == "defenses":
            method = defense(name)
            net = method.finish(method.fit(bad.observed(), e), e)
            metrics, _ = e.measure_all(net, clean, test)
            assert (
                len(metrics["ca"]) == 80
                and e.embeddings(net, clean, test)["true/clean"].device.type == elsewhere.NAME
            )
    # it splits the set after every third step here
    batches = len(clean) // RULES.recipe.batch_size * (2 if name == "asd" else 1)
    for (what, before), (same, after) in itertools.pairwise(waits):
        assert what != same or not what.endswith(", epochs") or after - before < batches, (
            f"{what}: the CPU waits for the GPU in every step"
        )


@pytest.mark.parametrize("text", VARIANTS)
def test_goes_on_after_a_kill(text, images, tmp_path):
    contract.resumes(text, tmp_path, images)


def test_training_shared_by_what_differs_only_later():
    avg, sg, sfrn = (
        registry.create("defenses", f"mcci[inference={i}]").training_spec()
        for i in ("avg", "sg", "sfrn")
    )
    assert avg == sg != sfrn

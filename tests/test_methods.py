"""Every registered method keeps the contract; a new file is tested without a new test."""

import dataclasses
import inspect
import itertools
import json

import elsewhere
import pytest
import torch
from conftest import RULES, make_images

from backdoorbench_ext import registry
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError

ATTACKS = registry.modules("attacks")
DEFENSES = registry.modules("defenses")
# options that only shorten
VARIANTS = [
    f"{name}[{f.name}={choice}]"
    for name in DEFENSES
    for f in dataclasses.fields(registry.get_class("defenses", name))
    for choice in f.metadata.get("choices", ())
    if choice != f.default
]


def engine(images=None, **more):
    return Engine(RULES, images or make_images(), make_images(8, seed=9), seed=3, **more)


def quick(text):
    name, options = registry.parse(text)
    cls = registry.get_class("attacks", name)
    return cls(**cls.short, **options)


def fitted(text, clean):
    attack = quick(text)
    return attack.fitted(attack.fit(clean, engine(clean))) if attack.learns else attack


def killed(folder, train):
    """What ``train`` returns when it is killed after each epoch in turn and started again; what
    lies between trainings is not kept.
    """

    class Killed(Exception):
        pass

    def kill(what, *_):
        if what.endswith(", epochs"):
            raise Killed

    for _ in range(40):
        try:
            return train(state=folder, progress=kill)
        except Killed:
            pass
    raise AssertionError("it never ended")


def defense(text):
    name, options = registry.parse(text)
    cls = registry.get_class("defenses", name)
    return cls(**cls.short, **options)


@pytest.mark.parametrize(
    ("kind", "name"), [("attacks", n) for n in ATTACKS] + [("defenses", n) for n in DEFENSES]
)
def test_file(kind, name):
    module = registry.module(kind, name)
    method = registry.create(kind, name)
    assert name == "none" or "http" in (inspect.getdoc(module) or ""), (
        "the module's docstring must cite paper or code with a link"
    )
    assert inspect.getdoc(type(method)), "the class must say what it does"
    for field in dataclasses.fields(method):
        assert field.metadata.get("meaning"), f"{field.name} must say what it means: use option()"
        if field.metadata["choices"] or field.metadata["low"] is not None:
            bad = "nonsense" if field.metadata["choices"] else field.metadata["low"] - 1
            with pytest.raises(InputError, match=f"{name}: {field.name} must"):
                registry.create(kind, f"{name}[{field.name}={bad}]")
    assert json.loads(json.dumps(method.spec())) == method.spec()
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.version = 7


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("side", [32, 48])
def test_trigger(name, side):
    clean = make_images(32, side=side)
    attack = fitted(name, clean)
    x = clean.x.float() / 255
    before = x.clone()
    out = attack.trigger(x)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(x, before), "the input must stay untouched"
    assert (out != x).flatten(1).any(1).all() == (attack.label_mode != "none"), (
        "every image must carry the trigger"
    )
    assert torch.equal(out, attack.trigger(x)), "a trigger has no chance of its own"
    assert torch.allclose(out[:3], attack.trigger(x[:3]), atol=1e-5), (
        "an image's trigger must not depend on its neighbours"
    )
    stamped = attack.stamp(clean.x)
    assert (
        stamped.dtype == torch.uint8
        and (stamped.float() / 255 - out).abs().max() <= 0.5 / 255 + 1e-6
    )


@pytest.mark.parametrize("name", [n for n in ATTACKS if quick(n).learns])
def test_learning(name, tmp_path):
    """One seed, one trigger, also when killed after every epoch; what is learned is tensors;
    without it there is a clear error.
    """
    clean = make_images(48)
    x = clean.x.float() / 255
    learned = quick(name).fit(clean, engine(clean))
    assert all(isinstance(value, torch.Tensor) for value in learned.values())
    again = killed(
        tmp_path,
        lambda **more: quick(name).fit(
            clean, engine(clean, victim=tmp_path / "clean.safetensors", **more)
        ),
    )
    assert torch.equal(quick(name).fitted(learned).trigger(x), quick(name).fitted(again).trigger(x))
    with pytest.raises(InputError, match="fit it first"):
        unfitted = quick(name)
        unfitted.trigger(x)
        unfitted.refine(
            clean, unfitted.poison(clean, target=1, rate=0.1, rng=torch.Generator()), engine(clean)
        )


@pytest.mark.parametrize("name", ATTACKS)
def test_poison(name):
    clean = make_images(80)
    attack = fitted(name, clean)

    def poison(seed):
        return attack.poison(clean, target=1, rate=0.1, rng=torch.Generator().manual_seed(seed))

    bad = poison(0)
    kept = ~(bad.mask | bad.cover)
    assert int(bad.mask.sum()) == (0 if attack.label_mode == "none" else 8)
    assert int(bad.cover.sum()) == round(attack.covers * 8) and not (bad.mask & bad.cover).any()
    assert torch.equal(bad.true, clean.y) and torch.equal(bad.x[kept], clean.x[kept])
    assert torch.equal(bad.y, torch.where(bad.mask, attack.goal(clean.y, 1, 4), clean.y))
    assert torch.equal(bad.x, poison(0).x), "the same seed poisons the same images"
    assert (bad.x != clean.x)[bad.mask | bad.cover].flatten(1).any(1).all()
    assert set(vars(bad.observed())) == {"x", "y", "classes"}, (
        "a defense must see neither mask nor true labels"
    )
    test = attack.test_set(clean, 1)
    assert (test.y != test.true).all() and test.mask.all()
    if attack.refines:
        made = attack.refine(clean, bad, engine(clean))
        assert made.shape == bad.x[bad.mask].shape and made.dtype == torch.uint8
        assert torch.equal(made, attack.refine(clean, bad, engine(clean)))


@pytest.mark.parametrize("text", [*DEFENSES, *VARIANTS])
def test_fit(text, images):
    method = defense(text)

    def outputs():
        e = engine(images)
        return method.finish(method.fit(images, e), e), e

    net, first = outputs()
    again, _ = outputs()
    assert not net.training
    logits = first.predict(net, images)
    assert logits.shape == (64, 4) and logits.isfinite().all()
    assert torch.equal(logits, first.predict(again, images)), "one seed, one result"
    given = (
        8 if method.clean_images is None else max(method.clean_images, 4 * method.clean_per_class)
    )
    assert first.log_book.clean_given == given, (
        "clean_images must say what is asked of engine.clean"
    )


@pytest.mark.parametrize("text", [*DEFENSES, *VARIANTS])
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
        attack = quick(name if kind == "attacks" else "badnets")
        if attack.learns:
            attack = attack.fitted(attack.fit(clean, e))
        bad = attack.poison(clean, target=1, rate=0.1, rng=torch.Generator().manual_seed(0))
        if attack.refines:
            bad.x[bad.mask] = attack.refine(clean, bad, e)
        test = attack.test_set(clean, 1)
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


@pytest.mark.parametrize("text", [*DEFENSES, *VARIANTS])
def test_goes_on_after_a_kill(text, images, tmp_path):
    """Killed after each epoch in turn, a training ends at the very same weights."""
    method = defense(text)
    whole = method.fit(images, engine(images)).state_dict()
    net = killed(tmp_path, lambda **more: method.fit(images, engine(images, **more)))
    resumed = net.state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_training_shared_by_what_differs_only_later():
    avg, sg, sfrn = (
        registry.create("defenses", f"mcci[inference={i}]").training_spec()
        for i in ("avg", "sg", "sfrn")
    )
    assert avg == sg != sfrn

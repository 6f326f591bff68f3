"""Every registered method keeps the contract; a new file is tested without a new test."""

import dataclasses
import inspect
import json

import pytest
import torch
from conftest import RULES, make_images

from backdoorbench_ext import registry
from backdoorbench_ext.api import InputError
from backdoorbench_ext.engine import Engine

ATTACKS, DEFENSES = registry.modules("attacks"), registry.modules("defenses")
QUICK = {"mcci": {"images": 4}, "cbd": {"t1_steps": 2}}  # options that only shorten
VARIANTS = [
    f"{name}[{f.name}={choice}]"
    for name in DEFENSES
    for f in dataclasses.fields(registry.get_class("defenses", name))
    for choice in f.metadata.get("choices", ())
    if choice != f.default
]


def engine(images=None, **more):
    return Engine(RULES, images or make_images(), make_images(8, seed=9), seed=3, **more)


def defense(text):
    name, options = registry.parse(text)
    return registry.get_class("defenses", name)(**QUICK.get(name, {}), **options)


@pytest.mark.parametrize(("kind", "name"), [("attacks", n) for n in ATTACKS] + [("defenses", n) for n in DEFENSES])
def test_file(kind, name):
    module, method = registry.module(kind, name), registry.create(kind, name)
    assert name == "none" or "http" in (inspect.getdoc(module) or ""), "the module's docstring must cite paper or code with a link"
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
    attack = registry.create("attacks", name)
    attack = attack.fit(clean, engine(clean))
    x = clean.x.float() / 255
    before, out = x.clone(), attack.trigger(x)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(x, before), "the input must stay untouched"
    assert (out != x).flatten(1).any(1).all() == (attack.label_mode != "none"), "every image must carry the trigger"
    stamped = attack.stamp(clean.x)
    assert stamped.dtype == torch.uint8 and (stamped.float() / 255 - out).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("name", ATTACKS)
def test_poison(name):
    clean = make_images(40)
    attack = registry.create("attacks", name).fit(clean, engine(clean))

    def poison(seed):
        return attack.poison(clean, target=1, rate=0.1, rng=torch.Generator().manual_seed(seed))

    bad = poison(0)
    assert int(bad.mask.sum()) == (0 if attack.label_mode == "none" else 4)
    assert torch.equal(bad.true, clean.y) and torch.equal(bad.x[~bad.mask], clean.x[~bad.mask])
    assert torch.equal(bad.y, torch.where(bad.mask, attack.goal(clean.y, 1, 4), clean.y))
    assert torch.equal(bad.x, poison(0).x), "the same seed poisons the same images"
    assert set(vars(bad.observed())) == {"x", "y", "classes"}, "a defense must see neither mask nor true labels"
    test = attack.test_set(clean, 1)
    assert (test.y != test.true).all() and test.mask.all()


@pytest.mark.parametrize("text", [*DEFENSES, *VARIANTS])
def test_fit(text, images):
    method = defense(text)

    def outputs():
        e = engine(images)
        return method.finish(method.fit(images, e), e), e

    (net, first), (again, _) = outputs(), outputs()
    assert not net.training
    logits = first.predict(net, images)
    assert logits.shape == (64, 4) and logits.isfinite().all()
    assert torch.equal(logits, first.predict(again, images)), "one seed, one result"
    assert first.log_book.clean_given == method.clean_images, "clean_images must say what is asked of engine.clean"


@pytest.mark.parametrize("text", [*DEFENSES, *VARIANTS])
def test_goes_on_after_a_kill(text, images, tmp_path):
    """Killed after each epoch in turn, a training ends at the very same weights."""
    method = defense(text)
    whole = method.fit(images, engine(images)).state_dict()

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    for _ in range(20):
        try:
            net = method.fit(images, engine(images, state=tmp_path, progress=kill))
            break
        except Killed:
            pass
    resumed = net.state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_training_shared_by_what_differs_only_later():
    avg, sg, sfrn = (registry.create("defenses", f"mcci[inference={i}]").training_spec() for i in ("avg", "sg", "sfrn"))
    assert avg == sg != sfrn

"""What every method must keep to, whoever wrote it: the tests run it on ours, ``bbx check`` on
yours.

Everything runs on a handful of small images and a network of two layers, on the CPU.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor

from . import registry, suite
from .api import Attack, Defense
from .engine import Engine
from .errors import InputError, told
from .images import Images
from .metrics import get
from .models import Net
from .networks import PlainNet
from .protocols import CBD, Recipe

Made = TypeVar("Made")
TARGET = 1
# epochs of all stages together that a method may have with its ``short`` options
MOST_EPOCHS = 40
# of what is computed in two ways
ALIKE = 1e-5


class Broken(Exception):
    """A method does not keep to the contract; the text says in what."""


@register_model
def bbx_test(pretrained: bool = False, num_classes: int = 10, **_: Any) -> PlainNet:
    """Two layers."""
    return PlainNet(((8, 2), (16, 2)), num_classes)


RULES = dataclasses.replace(
    CBD,
    name="test",
    model="bbx_test",
    recipe=Recipe(epochs=2, batch_size=16, lr=0.05, schedule="one-cycle"),
    crop=1,
    cutout=2,
    overrides={},
)


def make_images(n: int = 64, classes: int = 4, side: int = 32, seed: int = 0) -> Images:
    """Random images whose class is a bright quadrant."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 120, (n, 3, side, side), generator=rng, dtype=torch.uint8)
    y = torch.arange(n) % classes
    half = side // 2
    for i, label in enumerate(y.tolist()):
        top = half * (label // 2 % 2)
        left = half * (label % 2)
        x[i, :, top : top + half, left : left + half] += 100
    return Images(x, y, tuple(f"class{i}" for i in range(classes)))


def engine(images: Images | None = None, **more: Any) -> Engine:
    """An engine with eight clean images in reserve."""
    return Engine(RULES, images or make_images(), make_images(8, seed=9), seed=3, **more)


def _short(kind: str, text: str) -> Any:
    """A method with the options that make it short, and those of its name."""
    name, options = registry.parse(text)
    cls = registry.get_class(kind, name)
    return cls(**{**cls.short, **options})


def attack(text: str, clean: Images | None = None) -> Attack:
    """An attack; one that has learned its trigger from ``clean`` images, if these are given."""
    made: Attack = _short("attacks", text)
    if clean is None or not made.learns:
        return made
    return made.fitted(made.fit(clean, engine(clean)))


def defense(text: str) -> Defense:
    """A defense."""
    made: Defense = _short("defenses", text)
    return made


def variants(name: str) -> list[str]:
    """A defense by its name, and with every other choice that an option has."""
    fields = dataclasses.fields(registry.get_class("defenses", name))
    choices = [(f, choice) for f in fields for choice in f.metadata.get("choices", ())]
    others = [f"{name}[{f.name}={choice}]" for f, choice in choices if choice != f.default]
    return [name, *others]


def killed(folder: Path, train: Callable[..., Made]) -> Made:
    """What ``train`` returns when it is killed after each epoch in turn and started again; what
    lies between trainings is not kept.
    """

    class Killed(Exception):
        pass

    def kill(what: str, *_: Any) -> None:
        if what.endswith(", epochs"):
            raise Killed

    for _ in range(MOST_EPOCHS):
        with suppress(Killed):
            return train(state=folder, progress=kill)
    raise Broken("killed after every epoch, it never ends")


def must(condition: object, words: str) -> None:
    """Raises: Broken: not so."""
    if not condition:
        raise Broken(words)


def file(kind: str, name: str) -> None:
    """It cites its source, says what its options mean, checks them, and cannot be changed."""
    module = registry.module(kind, name)
    method = registry.create(kind, name)
    cited = "http" in (inspect.getdoc(module) or "")
    must(
        cited or name == "none" or kind == "executors",
        "the module's docstring must cite paper or code with a link",
    )
    words = type(method).__doc__ or ""
    # a dataclass without one has its signature there
    written = words and not words.startswith(f"{type(method).__name__}(")
    must(written, "the class must have a docstring that says what it does")
    for field in dataclasses.fields(method):
        must(field.metadata.get("meaning"), f"{field.name}: no meaning; make it with option()")
        choices = field.metadata["choices"]
        low = field.metadata["low"]
        if choices or low is not None:
            bad = "nonsense" if choices else low - 1
            _must_refuse(kind, name, field.name, bad)
    must(json.loads(json.dumps(method.spec())) == method.spec(), "its spec must outlive JSON")
    try:
        method.version = 7
    except dataclasses.FrozenInstanceError:
        return
    raise Broken("it must be a frozen dataclass: @dataclass(frozen=True)")


def _must_refuse(kind: str, name: str, option: str, bad: Any) -> None:
    text = f"{name}[{option}={bad}]"
    try:
        registry.create(kind, text)
    except InputError as error:
        must(f"{name}: {option} must" in str(error), f"{text} must be refused for {option}")
        return
    raise Broken(f"{text} must be refused")


def trigger(text: str, side: int = 32) -> None:
    """A trigger keeps shape and range, leaves its input alone, and has no chance of its own."""
    clean = make_images(32, side=side)
    made = attack(text, clean)
    x = clean.x.float() / 255
    before = x.clone()
    out = made.trigger(x)
    must(out.shape == x.shape and out.dtype == x.dtype, "trigger must keep shape and dtype")
    must(out.min() >= 0 and out.max() <= 1, "trigger must stay in [0, 1]")
    must(torch.equal(x, before), "trigger must leave its input untouched")
    carries = (out != x).flatten(1).any(1).all()
    must(carries == (made.label_mode != "none"), "every image must carry the trigger")
    must(torch.equal(out, made.trigger(x)), "a trigger has no chance of its own")
    alone = made.trigger(x[:3])
    alike = torch.allclose(out[:3], alone, atol=ALIKE)
    must(alike, "an image's trigger must not depend on its neighbors")
    stamped = made.stamp(clean.x)
    must(stamped.dtype == torch.uint8, "stamp must give uint8")
    far = (stamped.float() / 255 - out).abs().max()
    must(far <= 0.5 / 255 + 1e-6, "stamp must be the trigger, rounded")


def learning(text: str, folder: Path) -> None:
    """One seed, one trigger, also when killed; what is learned is tensors, and needed."""
    clean = make_images(48)
    x = clean.x.float() / 255
    made = attack(text)
    if not made.learns:
        return
    learned = made.fit(clean, engine(clean))
    tensors = all(isinstance(value, Tensor) for value in learned.values())
    must(tensors, "fit must give tensors by name")

    def fit(**more: Any) -> Mapping[str, Tensor]:
        return attack(text).fit(clean, engine(clean, victim=folder / "clean.safetensors", **more))

    again = killed(folder, fit)
    same = torch.equal(
        attack(text).fitted(learned).trigger(x), attack(text).fitted(again).trigger(x)
    )
    must(same, "killed after every epoch, it must learn the same trigger")
    try:
        unfitted = attack(text)
        unfitted.trigger(x)
        poisoned = unfitted.poison(clean, target=TARGET, rate=0.1, rng=torch.Generator())
        unfitted.refine(clean, poisoned, engine(clean))
    except InputError as error:
        must("fit it first" in str(error), "without what it learns it must say: fit it first")
        return
    raise Broken("it must not work without what it learns")


def poison(text: str) -> None:
    """As many images as the rate says, one seed one choice, and nothing that tells who they are."""
    clean = make_images(80)
    made = attack(text, clean)

    def poisoned(seed: int) -> Any:
        rng = torch.Generator().manual_seed(seed)
        return made.poison(clean, target=TARGET, rate=0.1, rng=rng)

    bad = poisoned(0)
    kept = ~(bad.mask | bad.cover)
    wanted = 0 if made.label_mode == "none" else 8
    must(int(bad.mask.sum()) == wanted, "8 of 80 images must be poisoned at a rate of 0.1")
    must(int(bad.cover.sum()) == round(made.covers * 8), "`covers` must say how many there are")
    must(not (bad.mask & bad.cover).any(), "a cover image is not a poisoned one")
    must(torch.equal(bad.true, clean.y), "true labels must be kept")
    must(torch.equal(bad.x[kept], clean.x[kept]), "other images must be left as they are")
    wished = torch.where(bad.mask, made.goal(clean.y, TARGET, 4), clean.y)
    must(torch.equal(bad.y, wished), "poisoned images, and no others, must get their goal as label")
    must(torch.equal(bad.x, poisoned(0).x), "the same seed must poison the same images")
    changed = (bad.x != clean.x)[bad.mask | bad.cover].flatten(1).any(1).all()
    must(changed, "poisoned and cover images must be changed")
    seen = set(vars(bad.observed()))
    must(seen == {"x", "y", "classes"}, "a defense must see neither mask nor true labels")
    test = made.test_set(clean, TARGET)
    must((test.y != test.true).all() and test.mask.all(), "test images must be of other classes")
    if made.refines:
        first, second = (made.refine(clean, bad, engine(clean)) for _ in range(2))
        fits = first.shape == bad.x[bad.mask].shape and first.dtype == torch.uint8
        must(fits, "refine must give the poisoned images, uint8")
        must(torch.equal(first, second), "refine: one seed, one result")


def fit(text: str, images: Images | None = None) -> None:
    """A network in evaluation mode, the same for one seed, from the clean images that it says."""
    images = images or make_images()
    method = defense(text)

    def trained() -> tuple[Any, Engine]:
        own = engine(images)
        return method.finish(method.fit(images, own), own), own

    before = images.x.clone()
    net, first = trained()
    again, _ = trained()
    must(torch.equal(images.x, before), "fit must leave the images untouched")
    must(not net.training, "the network must be in evaluation mode")
    logits = first.predict(net, images)
    must(logits.shape == (len(images), 4), "the network must give logits (n, classes)")
    must(logits.isfinite().all(), "logits must be finite")
    must(torch.equal(logits, first.predict(again, images)), "one seed, one result")
    needed = max(method.clean_images or 0, 4 * method.clean_per_class)
    given = 8 if method.clean_images is None else needed
    must(
        first.log_book.clean_given == given,
        f"clean_images must say what is asked of engine.clean: {first.log_book.clean_given}",
    )


def resumes(text: str, folder: Path, images: Images | None = None) -> None:
    """Killed after each epoch in turn, a training ends at the very same weights."""
    images = images or make_images()
    method = defense(text)
    whole = method.fit(images, engine(images)).state_dict()

    def again(**more: Any) -> Any:
        return method.fit(images, engine(images, **more))

    resumed = killed(folder, again).state_dict()
    must(whole.keys() == resumed.keys(), "killed and resumed, it must have the same weights")
    same = all(torch.equal(whole[key], resumed[key]) for key in whole)
    must(same, "killed after every epoch, it must end at the same weights")


def grid(name: str) -> None:
    """Every name in a suite means something."""
    suite.load(name).cells()


def metric(name: str) -> None:
    """A number of a record, or None where it cannot be had."""
    made = get(name)
    must(made.key == name, f"its key must be the file's name, {name}")
    must(made.better in ("higher", "lower"), "better must be higher or lower")
    counts: dict[str, Any] = {"metrics": {"ca": [90, 100], "asr": [5, 80], "arr": [60, 80]}}
    for record, baseline in ((counts, counts), (counts, None), ({"metrics": {}}, None)):
        number = made.of(record, baseline)
        fine = number is None or isinstance(number, (int, float))
        must(fine, f"of must give a number in percent, or None, not {number!r}")


def executor(name: str) -> None:
    """It hands on every group once."""

    class Echo:
        def run(self, group: Any, tell: Any) -> Any:
            return group

    groups: Any = [["a"], ["b", "c"], ["d"]]
    work: Any = Echo()
    runs: Any = registry.create("executors", name)
    handed = list(runs.run(groups, work, lambda *_: None))
    must(sorted(map(tuple, handed)) == sorted(map(tuple, groups)), "every group must be run once")


def network(name: str) -> None:
    """Its embedding is (n, num_features), and its last layer makes the logits of that."""
    net = Net(name, 7).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        z = net.features(x)
        logits = net(x)
        wide = net.num_features
        must(z.shape == (2, wide), f"forward_head(pre_logits=True) must give (n, {wide})")
        must(logits.shape == (2, 7), "it must give as many logits as num_classes")
        for whole in (net.head(z), net.backbone(x)):
            alike = torch.allclose(whole, logits, rtol=1.3e-6, atol=ALIKE)
            must(alike, "forward must be the last layer of the embedding")


def trains(name: str) -> None:
    """As No Defense, by gradients that reach every weight."""
    images = make_images()
    rules = dataclasses.replace(RULES, model=name)
    own = Engine(rules, images, seed=3)
    net = own.new_model()
    F.cross_entropy(net(own.to_float(images.x)), images.y).backward()
    trained = [(which, p) for which, p in net.named_parameters() if p.requires_grad]
    idle = [which for which, p in trained if p.grad is None]
    must(not idle, f"weights without a gradient: {', '.join(idle)}")
    logits = own.predict(own.fit(net, images), images)
    must(logits.isfinite().all(), "logits must be finite")


def checks(kind: str, name: str, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """What a method is checked for, and how; ``folder`` for what trainings save."""
    if kind == "benchmarks":
        yield "its names mean something", partial(grid, name)
        return
    if kind == "metrics":
        yield "its numbers", partial(metric, name)
        return
    if kind == "models":
        yield "its embedding and logits", partial(network, name)
        yield "it trains", partial(trains, name)
        return
    yield "its file and options", partial(file, kind, name)
    if kind == "executors":
        yield "every group is run once", partial(executor, name)
    if kind == "attacks":
        for side in (32, 48):
            yield f"its trigger on images of {side} pixels", partial(trigger, name, side)
        yield "what it learns", partial(learning, name, folder / name)
        yield "the poisoned set", partial(poison, name)
    if kind == "defenses":
        for text in variants(name):
            yield f"{text} trains", partial(fit, text)
            yield f"{text} goes on after a kill", partial(resumes, text, folder / text)


def outcome(check: Callable[[], None]) -> str:
    """What is wrong, "" if nothing is."""
    try:
        check()
    except Broken as broken:
        return str(broken)
    # a method may raise anything
    except Exception as error:
        return told(error)
    return ""

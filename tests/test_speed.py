"""The fast ways compute what the plain ones do, and every speed benchmark runs."""

import shutil
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import RULES, make_images
from PIL import Image

from backdoorbench_ext import beside
from backdoorbench_ext.attacks.badnets import BadNets
from backdoorbench_ext.benchmarks.looks import releases
from backdoorbench_ext.benchmarks.speed import (
    cell,
    equal,
    fast,
    grid,
    memory,
    peers,
    pipeline,
    poisoning,
    timing,
    training,
    triggers,
)
from backdoorbench_ext.datasets import load
from backdoorbench_ext.devices import has_bf16
from backdoorbench_ext.engine import Engine, moments
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.images import per_part
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite


@pytest.fixture
def options(tmp_path):
    return Options(out=tmp_path / "runs", device="cpu")


@pytest.mark.parametrize("words", ["--jobs 1,x", "--jobs 0", "--jobs ,"])
def test_numbers_of_processes_that_are_none(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grid", *words.split()])
    with pytest.raises(SystemExit):
        grid.main()
    assert "must be whole numbers of at least 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_training_rounds_differently_and_no_more(images):
    nets = []
    for mode in ("", "default"):
        engine = Engine(RULES, images, seed=3, compile=mode)
        nets.append(engine.fit(engine.new_model(), images, epochs=1).state_dict())
    for name, plain in nets[0].items():
        torch.testing.assert_close(
            plain, nets[1][name], atol=0.02 if engine.bf16 else 1e-4, rtol=0, msg=name
        )


def test_where_bf16_is_used(monkeypatch):
    def computes(amx, **can):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
        return has_bf16(torch.device("cpu"))

    assert computes(True) and computes(False, avx512_bf16=True, cpu_name="AMD EPYC 9554")
    assert not computes(False, avx512_bf16=True, cpu_name="Intel Xeon Gold 6348H") and not computes(
        False, avx512_bf16=False, cpu_name="AMD EPYC 7763"
    )
    assert not computes(False) and not has_bf16(torch.device("meta"))


@pytest.mark.parametrize(("side", "bf16"), [(8, False), (32, True)])
def test_no_bf16_where_onednn_leaves_gradients_as_memory_was(monkeypatch, side, bf16):
    """ShuffleNet strides over a map of one pixel when images have 8."""
    monkeypatch.setattr("backdoorbench_ext.engine.has_bf16", lambda device: device.type == "cpu")
    rules = replace(RULES, model="torchvision:shufflenet_v2_x1_0")
    engine = Engine(rules, make_images(side=side))
    net = engine.new_model()
    assert engine.bf16 == bf16
    assert net.training and not any(m._forward_pre_hooks for m in net.modules())


def test_trainings_at_a_time_are_doubled_while_it_pays(monkeypatch):
    def speeds(found):
        monkeypatch.setattr(
            beside, "speed", lambda jobs, *_: found[jobs] if jobs in found else memory()
        )
        return beside.best(RULES, (3, 32, 32), 10, most=8)

    def memory():
        raise RuntimeError("out of memory")

    assert speeds({1: 100, 2: 190, 4: 200}) == (4, {1: 100, 2: 190, 4: 200}), (
        "4 are hardly faster than 2: 8 are not tried"
    )
    assert speeds({1: 100, 2: 90})[0] == 1
    assert speeds({1: 100, 2: 190})[0] == 2, "4 do not fit into memory"
    with pytest.raises(RuntimeError, match="memory"):
        speeds({})


def test_trigger_benchmark():
    table = triggers.measure(
        torch.randint(
            256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        ),
        rounds=1,
    )
    assert set(table) == {"copy", *triggers.NAMES}
    assert all(
        row["difference"] <= 1
        for name, row in table.items()
        if name not in ("copy", "ftrojan", "ctrl")
    ), "both ways draw the same trigger"


def test_speed_benchmarks_run(options, images):
    """A round of each on a few images: every way is timed."""
    assert set(poisoning.measure(images, images, 1)) == {"PIL and PNG files, one by one", "ours"}
    assert all(
        speed.median > 0 for speed in pipeline.measure(images, 1, usual=32, batch=16).values()
    )
    speeds, flops = training.measure("bbx_test", images, 1, batch=16)
    assert len(speeds) == 3 and flops > 0
    parts = cell.measure(
        Suite("cell", RULES, ("digits[train=100,test=20]",), ("badnets",), ("none",)), options
    )
    assert list(parts) == ["poisoning", "training", "evaluation", "rest"] and all(
        seconds > 0 for seconds in parts.values()
    )
    found = timing.roofline(torch.device("cpu"), size=32, seconds=0.01)
    assert len(found) == 3 and all(value > 0 for value in found.values())
    assert sum(training.profiled("bbx_test", images, batch=16).values()) == pytest.approx(1)
    assert (
        grid.together(replace(RULES, model="cnn5"), (1,), "cpu", 1, seconds=0.1)[
            "1 at a time"
        ].median
        > 0
    )
    assert (
        grid.cells_an_hour(
            Suite("grid", RULES, ("digits[train=100,test=20]",), ("badnets",), ("none",)),
            options,
            1,
        )
        > 0
    )


def test_plain_and_fast_training_are_compared_on_the_same_images(images):
    """Both learn the four bright quadrants, and what is compared is in percent."""
    rules = replace(RULES, crop=0, cutout=0, flip=False, recipe=replace(RULES.recipe, epochs=30))
    attack = BadNets()
    test = make_images(40, seed=5)
    poisoned = attack.poison(images, target=0, rate=0.1, rng=torch.Generator().manual_seed(0))
    ways = {"plain": equal.plain(rules), "ours": equal.fast(rules)}
    found = equal.measure(rules, ways, poisoned, test, attack.test_set(test, 0), (0, 1))
    assert all(
        len(values) == 2 and max(values) <= 100
        for metrics in found.values()
        for values in metrics.values()
    )
    assert min(found["plain"]["ca"]) > 60 and min(found["ours"]["ca"]) > 60


SIG = """
import lpips
import numpy as np


class sigTriggerAttack:
    def __init__(self, delta, f):
        self.wave = delta * np.sin(2 * np.pi * f * np.arange(32, dtype=np.float) / 32)

    def __call__(self, x):
        return x + self.wave[None, :, None] + lpips.nothing.__len__()
"""


def test_triggers_beside_a_release(tmp_path, capsys):
    """A checkout's file is run as it is, with what it imports and is not installed mocked."""
    given = Namespace(release=tmp_path, attack=["sig"], dataset="digits", data=None, out=None)
    with pytest.raises(InputError, match="no checkout of a known release"):
        releases.compare(given)
    file = tmp_path / "utils" / "bd_img_transform" / "sig.py"
    file.parent.mkdir(parents=True)
    file.write_text(SIG)
    given.out = tmp_path / "looks.png"
    releases.compare(given)
    _, _, largest, _, mean, *_ = capsys.readouterr().out.split()
    # ours is rounded
    assert 0.1 < float(mean) < float(largest) <= 0.51
    with Image.open(given.out) as drawn:
        assert drawn.size == (512, 256)
    assert not {"lpips", "release"} & set(sys.modules) and not hasattr(np, "float")
    given.attack = ["lira"]
    with pytest.raises(InputError, match="'lira' is none of this release's: sig, blend"):
        releases.compare(given)


def test_parts_are_of_pixels():
    """Parts of 8,192 images took 160 GB where an image of 224 pixels takes 46 MB."""
    assert per_part(2**23, torch.empty(1, 3, 32, 32)) == 8192
    assert per_part(2**23, torch.empty(1, 3, 224, 224)) == 167
    assert per_part(2**16, torch.empty(1, 3, 2048, 2048)) == 1
    sizes = []
    cover = BadNets()
    object.__setattr__(cover, "cover", lambda x, rng: sizes.append(len(x)) or x)
    cover._covered(torch.zeros(1025, 3, 32, 32, dtype=torch.uint8), torch.Generator())
    assert sum(sizes) == 1025 and min(sizes) > 1, "no image is left without another"


def test_moments_from_counts():
    """As of a float copy of all images, without the copy."""
    x = make_images(40).x
    mean, std = moments(x)
    floats = x.double() / 255
    torch.testing.assert_close(mean, floats.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, floats.std((0, 2, 3)).float())


def test_the_search_tells_accuracy_on_held_images_epoch_by_epoch(images, capsys):
    points = fast.curve(RULES, images, make_images(20, seed=4), smoothing=0.1)
    assert len(points) == RULES.recipe.epochs == len(capsys.readouterr().out.splitlines())
    assert all(0 <= point["accuracy"] <= 100 for point in points)
    assert points[-1]["s"] > points[0]["s"] > 0


@pytest.fixture
def peer():
    """What a peer's process is told."""
    return Namespace(
        dataset="digits",
        data=None,
        images=40,
        test=20,
        model="cnn5",
        epochs=1,
        device="cpu",
        workers=0,
    )


def test_memory_of_a_step():
    """By hand: what the network and SGD's momentum hold; activations grow with the batch."""
    found = []
    for batch in (16, 32):
        rules = replace(RULES, recipe=replace(RULES.recipe, batch_size=batch))
        images = make_images(2 * batch)
        found.append(memory.peak(rules, images))
    net = Engine(RULES, images).new_model()
    of_net = sum(t.numel() * t.element_size() for t in net.state_dict().values()) / 2**20
    of_weights = sum(p.numel() * p.element_size() for p in net.parameters()) / 2**20
    for held in found:
        # BatchNorm counts its steps in 8 bytes, which the tracker rounds to blocks of 512
        assert held["parameters"] == pytest.approx(of_net, abs=0.02)
        assert held["optimizer"] == pytest.approx(of_weights, rel=0.1)
        assert held["in all"] == pytest.approx(sum(held.values()) - held["in all"], rel=1e-6)
    assert 1.7 < found[1]["activations"] / found[0]["activations"] < 2.1


def test_a_network_that_cannot_recompute_is_said(monkeypatch, capsys):
    words = ["memory", "--model", "cnn5", "--threads", "1", "--optimizer", "sgd"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    memory.main()
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("cnn5, batch 8, plain, MiB: parameters")
    assert told[1] == "recompute: the network cannot compute its activations again"


def test_a_cell_of_ours_beside_the_peers(peer, monkeypatch):
    monkeypatch.setattr(peers, "BACKDOORBENCH", RULES)
    cell = peers.ours(peer)
    assert cell["cell s"] > cell["poison s"] > 0 and cell["images/s"] > 0


def test_peers_are_given_the_same_images(peer, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "__init__", CIFAR10.__init__)
    peers.serve(peer)
    given = CIFAR10("nowhere", train=False, download=True)
    test = load("digits[train=40,test=20]")[1]
    assert np.array_equal(np.asarray(given[3][0]), test.x[3].permute(1, 2, 0).numpy())
    assert given[3][1] == int(test.y[3]) and len(given) == 20


def test_peers_that_are_not_there_are_left_out(monkeypatch, capsys):
    cell = dict.fromkeys(peers.MEASURED, 1.0)
    asked = []
    monkeypatch.setattr(peers, "measured", lambda way, *_: asked.append(way) or cell)
    monkeypatch.setattr(sys, "argv", ["peers", "--rounds", "2", "--threads", "1"])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    peers.main()
    assert asked == ["ours", "ours"]
    assert "BackdoorBench is left out" in capsys.readouterr().out

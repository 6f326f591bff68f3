"""BackdoorBench's records, its attacks and its interface: what is read exactly, what is refused,
what comes back.
"""

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import RULES, here, make_images
from PIL import Image

from backdoorbench_ext import models, registry
from backdoorbench_ext.attacks.badnets import BadNets
from backdoorbench_ext.attacks.blend import Blend
from backdoorbench_ext.attacks.sig import SIG
from backdoorbench_ext.attacks.wanet import WaNet
from backdoorbench_ext.engine import seed_of
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.images import Images
from backdoorbench_ext.lab import Lab, hold_out
from backdoorbench_ext.models import Net
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite
from backdoorbench_ext.toolbox import attacks, commands, interface, record
from backdoorbench_ext.toolbox import checkout as checkout_module

CLASSES = tuple("abcd")


def clean_sets():
    return make_images(80, side=8), make_images(20, side=8, seed=1)


def content(folder, inside=False, model="shufflenet_v2_x1_0", key=np.int64):
    """A record as BackdoorBench's format describes it, made here by hand: trigger = the last pixel
    white, target 0, rate 0.05.
    """
    train, test = clean_sets()
    net = models.create(f"torchvision:{model}", 4)
    fc = net.classifier
    state = {
        name.removeprefix("net.").replace("fc.", f"{fc}.")
        if name.startswith(("net.", "fc."))
        else name: v
        for name, v in net.state_dict().items()
    }

    def part(name, clean, places, index):
        indicator = np.zeros(len(clean))
        entries = {}
        indicator[places] = 1
        for i in places:
            pixels = clean.x[i].permute(1, 2, 0).numpy().copy()
            pixels[-1, -1] = 255
            original = int(clean.y[i])
            picture = Image.fromarray(pixels)
            if inside:
                entries[key(i)] = (picture, 0, original)
            else:
                file = folder / f"bd_{name}_dataset" / str(original) / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture.save(file)
                entries[key(i)] = {
                    "path": f"./record/made/bd_{name}_dataset/{original}/{i}.png",
                    "other_info": [0, original],
                }
        base = None if inside else f"./record/made/bd_{name}_dataset"
        container = {"save_folder_path": base, "data_dict": entries, "save_file_format": ".png"}
        return {
            "bd_data_container": container,
            "original_index_array": np.array(index),
            "poison_indicator": indicator,
            "save_folder_path": base,
            "getitem_all": True,
            "getitem_all_switch": False,
        }

    others = [i for i in range(20) if test.y[i] != 0]
    return {
        "model_name": model,
        "num_classes": 4,
        "model": state,
        "data_path": "./data/cifar10",
        "img_size": (8, 8, 3),
        "clean_data": "cifar10",
        "bd_train": part("train", train, [1, 6, 11, 39], range(80)),
        "bd_test": part("test", test, others, others),
    }


def saved(folder, what):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(what, folder / "attack_result.pt")
    return folder


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "record" / "made"
    return saved(folder, content(folder))


def check(found):
    """What ``content`` says, exactly."""
    train, test = clean_sets()
    poisoned = found.poisoned("train", train)
    triggered = found.poisoned("test", test)
    assert poisoned.mask.nonzero().flatten().tolist() == [1, 6, 11, 39] and not poisoned.cover.any()
    assert torch.equal(poisoned.true, train.y) and poisoned.y[[1, 6, 11, 39]].tolist() == [0] * 4
    assert torch.equal(poisoned.x[~poisoned.mask], train.x[~poisoned.mask]) and torch.equal(
        poisoned.y[~poisoned.mask], train.y[~poisoned.mask]
    )
    changed = (poisoned.x != train.x).any(1)
    assert (
        changed[poisoned.mask].flatten(1).sum(1).tolist() == [1] * 4
        and (poisoned.x[poisoned.mask][:, :, -1, -1] == 255).all()
    )
    keep = test.y != 0
    assert (
        torch.equal(triggered.true, test.y[keep])
        and (triggered.y == 0).all()
        and triggered.mask.all()
    )
    assert torch.equal(triggered.x[:, :, :-1], test.x[keep][:, :, :-1])
    assert found.rate == 0.05 and found.targets == [0] and found.dataset == "cifar10"


def test_reading(made, tmp_path):
    """Pictures on disk and in the file, numpy's and plain integers as keys, ``module.`` before the
    names, another folder name than when it was made.
    """
    check(record.read(made))
    for inside, key in ((True, int), (True, np.int64), (False, int)):
        folder = tmp_path / f"{inside}{key.__name__}"
        what = content(folder, inside, key=key)
        what["model"] = {f"module.{name}": value for name, value in what["model"].items()}
        what["extra"] = [1, 2]
        found = record.read(saved(folder, what))
        check(found)
        assert "conv1.0.weight" in found.model


def test_the_names_of_numpy_1(made):
    """Files written under NumPy 1 say numpy.core where NumPy 2 says numpy._core."""
    file = made / "attack_result.pt"
    repacked = file.with_suffix(".new")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(repacked, "w") as new:
        for item in old.namelist():
            new.writestr(
                item, old.read(item).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            )
    assert b"numpy.core.multiarray" in repacked.read_bytes()
    repacked.replace(file)
    check(record.read(made))


class Runs:
    """Unpickled in the ordinary way, this runs a command."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def png_header(path, width, height):
    """A PNG file that says it is that large."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


def change(name):
    """One thing wrong with a record: (the change, what the refusal says)."""

    def path(what, folder):
        what["bd_train"]["bd_data_container"]["data_dict"][np.int64(6)]["path"] = (
            "./record/made/bd_train_dataset/../../../secret.png"
        )

    def absolute(what, folder):
        what["bd_train"]["bd_data_container"]["data_dict"][np.int64(6)]["path"] = "/etc/hostname"

    def outside(what, folder):
        what["bd_train"]["original_index_array"] = np.array([0, 80])

    def key(what, folder):
        entries = what["bd_train"]["bd_data_container"]["data_dict"]
        entries[10**6] = entries[np.int64(6)]

    def label(what, folder):
        what["bd_test"]["bd_data_container"]["data_dict"][np.int64(1)]["other_info"] = [0, 4]

    def shape(what, folder):
        what["img_size"] = (8, 8)

    def indicator(what, folder):
        what["bd_train"]["poison_indicator"] = np.zeros((80, 2))

    def missing(what, folder):
        what["bd_train"]["bd_data_container"]["data_dict"].pop(np.int64(6))

    def keys(what, folder):
        del what["bd_test"], what["clean_data"]

    def command(what, folder):
        what["extra"] = Runs(folder / "executed")

    def in_entry(what, folder):
        what["bd_train"]["bd_data_container"]["data_dict"][np.int64(6)]["other_info"] = Runs(
            folder / "executed"
        )

    says = {
        "path": "leaves the record's folder",
        "absolute": "leaves the record's folder",
        "outside": "points outside the 80 images",
        "key": "1000000 is outside",
        "label": "two classes below 4",
        "shape": "img_size",
        "indicator": "line of numbers",
        "missing": "no picture of it",
        "keys": "lacks clean_data, bd_test",
        "command": "posix.system",
        "in_entry": "posix.system",
    }
    return locals()[name], says[name]


@pytest.mark.parametrize(
    "name",
    [
        "path",
        "absolute",
        "outside",
        "key",
        "label",
        "shape",
        "indicator",
        "missing",
        "keys",
        "command",
        "in_entry",
    ],
)
def test_refused_structure(name, tmp_path):
    folder = tmp_path / "record" / "made"
    wrong, says = change(name)
    what = content(folder)
    wrong(what, folder)
    saved(folder, what)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=says) as caught:
        record.read(folder)
    assert (
        "\n" not in str(caught.value)
        and not (folder / "executed").exists()
        and sorted(tmp_path.rglob("*")) == before
    )


def test_refused_files(made, tmp_path, capsys):
    """Truncated, empty, a plain pickle that runs a command, an old torch file that does: one line,
    exit code 2, nothing executed, nothing written.
    """
    file = made / "attack_result.pt"
    trace = tmp_path / "executed"
    whole = file.read_bytes()
    torch.save(Runs(trace), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for data in (
        whole[: len(whole) // 2],
        whole[:100],
        b"",
        pickle.dumps(Runs(trace)),
        (tmp_path / "old.pt").read_bytes(),
        b"\x80\x02garbage",
    ):
        file.write_bytes(data)
        code = here(
            "defend",
            str(made),
            "--defense",
            "none",
            "--data",
            str(tmp_path),
            "--out",
            str(tmp_path / "runs"),
        )
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1 and str(file) in error
        assert not trace.exists() and not (tmp_path / "runs").exists()


def test_refused_pictures(made):
    """A picture of 100,000 x 100,000 pixels by its header, of another size, of no kind, a link out
    of the folder: told before it is decoded.
    """
    train, _ = clean_sets()
    picture = made / "bd_train_dataset" / "2" / "6.png"
    png_header(picture, 100_000, 100_000)
    with pytest.raises(InputError, match=r"6\.png: not a readable image"):
        record.read(made).poisoned("train", train)
    png_header(picture, 9, 8)
    with pytest.raises(InputError, match=r"9x8 pixels, expected 8x8"):
        record.read(made).poisoned("train", train)
    picture.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable image"):
        record.read(made).poisoned("train", train)
    elsewhere = made.parent / "elsewhere.png"
    picture.rename(elsewhere)
    picture.symlink_to(elsewhere)
    record._read.cache_clear()
    with pytest.raises(InputError, match="leaves the record's folder"):
        record.read(made)


def test_another_clean_set(made):
    """Other images, or the same in another order, are told from the labels and the numbers."""
    train, _ = clean_sets()
    with pytest.raises(InputError, match="was made from 80 of 8x8, 4 classes; given are 79"):
        record.read(made).poisoned("train", train[:79])
    with pytest.raises(InputError, match="another data set, or another order"):
        record.read(made).poisoned("train", train[torch.arange(79, -1, -1)])


def test_cover_images(tmp_path):
    """A replaced image that keeps a label other than the target is a cover image, and does not
    count as poisoned.
    """
    what = content(tmp_path / "r")
    what["bd_train"]["bd_data_container"]["data_dict"][np.int64(6)]["other_info"] = [2, 2]
    found = record.read(saved(tmp_path / "r", what))
    poisoned = found.poisoned("train", clean_sets()[0])
    assert (
        poisoned.cover.nonzero().flatten().tolist() == [6]
        and poisoned.mask.sum() == 3
        and found.rate == 3 / 80
    )


def npz(folder, train, test):
    arrays = {
        f"{k}_{n}": v
        for k, s in (("train", train), ("test", test))
        for n, v in (("images", s.x.permute(0, 2, 3, 1).numpy()), ("labels", s.y.numpy()))
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "cifar10.npz", classes=np.array(train.classes), **arrays)
    return folder


TINY = replace(
    RULES,
    model="torchvision:shufflenet_v2_x1_0",
    recipe=replace(RULES.recipe, epochs=1),
    reserve=0.1,
)


@pytest.mark.parametrize("attack", ["badnets", "wanet"])
def test_round_trip(attack, tmp_path):
    """Written and read again: pixels, labels, indicator, places and the network are the same.

    The format does not tell a cover image of the target class from a poisoned one: both were
    changed and have the target's label.
    """
    data = npz(tmp_path / "data", make_images(40), make_images(20, seed=1))
    cell = replace(Suite("grid", TINY, ("cifar10",), (attack,), ("none",)).cells()[0], rate=0.1)
    options = Options(out=tmp_path / "runs", data=data, device="cpu")
    counts = commands.poison(cell, options, tmp_path / "record" / "ours")
    lab = Lab(cell, options)
    train = lab.poisoned
    assert counts == {"train": 40, "reserve": 4, "poisoned": 4, "triggered": 15}
    back = record.read(tmp_path / "record" / "ours")
    every = back.poisoned("train", make_images(40))
    places = np.loadtxt(tmp_path / "record" / "ours" / "reserve.txt", dtype=int)
    reserve = every[torch.from_numpy(places)]
    assert torch.equal(reserve.x, lab.reserve.x) and torch.equal(reserve.y, lab.reserve.y)
    assert not reserve.mask.any() and not reserve.cover.any()
    again = every[~lab.held]
    triggered = back.poisoned("test", make_images(20, seed=1))
    for name in ("x", "y", "true"):
        assert torch.equal(getattr(again, name), getattr(train, name)) and torch.equal(
            getattr(triggered, name), getattr(lab.triggered, name)
        )
    assert torch.equal(again.mask | again.cover, train.mask | train.cover) and triggered.mask.all()
    telling = train.true != 0
    assert torch.equal(again.mask[telling], train.mask[telling]) and torch.equal(
        again.cover[telling], train.cover[telling]
    )
    victim = Net(TINY.model, 4)
    victim.load_state_dict(back.fit_to(victim))
    rows = [
        line.split(",")
        for line in (tmp_path / "record" / "ours" / "attack_df.csv").read_text().splitlines()
    ]
    with torch.no_grad():
        right = (
            (
                victim.eval()(make_images(20, seed=1).x.float() / 255).argmax(1)
                == make_images(20, seed=1).y
            )
            .float()
            .mean()
        )
    # bf16 against float32
    assert rows[0] == ["", "epoch", "test_acc", "test_asr", "test_ra"] and float(
        rows[1][2]
    ) == pytest.approx(float(right), abs=0.11)
    with pytest.raises(InputError, match="exists already"):
        commands.poison(cell, options, tmp_path / "record" / "ours")


def test_where_to_write(tmp_path):
    """BackdoorBench cuts the path at the first "record" in it."""
    record.check_place(tmp_path / "record" / "x")
    for place in (tmp_path / "x", tmp_path / "my_records" / "record" / "x"):
        with pytest.raises(InputError, match="give record/NAME"):
            record.check_place(place)


def test_names_of_backdoorbench():
    """PreAct-ResNet-18 has 122 tensors there, by these names in this order; torchvision's networks
    have theirs.
    """
    net = Net("preactresnet18", 10)
    theirs = [
        record.their_name(name, net) for name in net.state_dict() if name.startswith("backbone.")
    ]
    assert theirs[:8] == [
        "conv1.weight",
        *(
            f"layer1.0.bn1.{n}"
            for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
        "layer1.0.conv1.weight",
        "layer1.0.bn2.weight",
    ]
    assert "layer2.0.shortcut.0.weight" in theirs and theirs[-2:] == [
        "linear.weight",
        "linear.bias",
    ]
    for name in ("resnet18", "shufflenet_v2_x1_0", "mobilenet_v2"):
        net = Net(f"torchvision:{name}", 10)
        names = [record.their_name(n, net) for n in net.state_dict() if n.startswith("backbone.")]
        assert sorted(names) == sorted(
            torchvision.models.get_model(name, num_classes=10).state_dict()
        )
    with pytest.raises(InputError, match="does not end in a linear layer"):
        models.create("torchvision:squeezenet1_0", 10)
    with pytest.raises(InputError, match="Did you mean 'resnet18'"):
        models.check("torchvision:resnt18")


def test_a_victim_of_another_architecture(made):
    with pytest.raises(InputError, match="another architecture"):
        record.read(made).fit_to(Net("bbx_test", 4))
    with pytest.raises(InputError, match="another architecture"):
        record.read(made).fit_to(Net("torchvision:shufflenet_v2_x1_0", 5))


def test_defend(made, tmp_path, capsys):
    """``bbx defend``: the record's network is No Defense and the victim; tables, and
    defense_result.pt with BackdoorBench's names.
    """
    data = npz(tmp_path / "data", *clean_sets())
    out = tmp_path / "runs"
    assert (
        here(
            "defend",
            str(made),
            "--defense",
            "none,mcci[images=4]",
            "--data",
            str(data),
            "--out",
            str(out),
            "--epochs",
            "1",
            "--jobs",
            "1",
        )
        == 0
    )
    text = capsys.readouterr()
    assert "nothing to run" not in text.err
    results = list(out.rglob("*defense_result.pt"))
    # MCCI's pair of networks is unknown there
    assert len(results) == 1 and "none" in str(results[0])
    found = torch.load(results[0], weights_only=True)
    assert (found["model_name"], found["num_classes"]) == ("shufflenet_v2_x1_0", 4)
    given = record.read(made).model
    assert all(torch.equal(found["model"][name], value) for name, value in given.items())


def test_defend_needs_a_network_with_an_embedding(tmp_path, capsys):
    """The network of a record is told to be unfit before anything is trained."""
    what = content(tmp_path / "r")
    for name, says in (
        ("squeezenet1_0", "does not end in a linear layer"),
        ("mobilenet_v2", "another architecture"),
        ("resnt", "Did you mean"),
    ):
        what["model_name"] = name
        folder = saved(tmp_path / "r", what)
        record._read.cache_clear()
        assert (
            here(
                "defend",
                str(folder),
                "--defense",
                "fp",
                "--data",
                str(tmp_path),
                "--out",
                str(tmp_path / "runs"),
            )
            == 2
        )
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_protocol_must_fit_the_record(made, tmp_path):
    data = npz(tmp_path / "data", *clean_sets())
    options = Options(out=tmp_path / "runs", data=data, device="cpu")
    for rules, rate, says in (
        (TINY, 0.2, "its poisoning rate is 0.05, not 0.2"),
        (replace(TINY, target=1), 0.05, "its target is 0, the protocol's 1"),
    ):
        cell = Suite(
            "grid", rules, ("cifar10",), (f"record:{made}",), ("none",), rates=(rate,)
        ).cells()[0]
        with pytest.raises(InputError, match=says):
            Lab(cell, options).poisoned  # noqa: B018
    with pytest.raises(InputError, match="network"):
        Suite("grid", TINY, ("cifar10",), (f"record:{made}[victim=x]",), ("none",)).cells()


# --- its code calling ours


def test_transforms():
    """Called like BackdoorBench's: a picture in, a picture out, the same pixels as the attack's;
    labels beside them.
    """
    picture = Image.fromarray(make_images(1).x[0].permute(1, 2, 0).numpy())
    for name, attack in (("badnets", BadNets(size=5)), ("blend", Blend(alpha=0.2))):
        made = interface.TRANSFORMS[name](**({"size": 5} if name == "badnets" else {"alpha": 0.2}))(
            picture, target=3, image_serial_id=7
        )
        expected = attack.stamp(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])[
            0
        ].permute(1, 2, 0)
        assert isinstance(made, Image.Image) and np.array_equal(np.array(made), expected.numpy())
    assert interface.LABELS["badnets"](target=2, classes=10)(7) == 2
    assert interface.LABELS["badnets"](target=2, classes=10, label_mode="all-to-all")(9) == 0
    assert set(interface.DEFENSES) >= {"cbd", "mcci", "abl"} and interface.CBD.__name__ == "CBD"
    with pytest.raises(KeyError, match="Did you mean"):
        interface.TRANSFORMS["badnet"]
    with pytest.raises(InputError, match="learns its trigger"):
        interface.TRANSFORMS["dynamic"]()


def test_script(made, tmp_path, monkeypatch):
    """``python -m backdoorbench_ext.toolbox``: flags above YAML, files where BackdoorBench has
    them.
    """
    npz(tmp_path / "data", *clean_sets())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cbd.yaml").write_text(
        "epochs: 7\nlr: 0.02\nbatch_size: 8\ndevice: cuda:0\nnum_workers: 4\nrandom_seed: 3\n"
    )
    words = "cbd --result_file made --yaml_path cbd.yaml --dataset cifar10 --dataset_path ./data"
    words += " --epochs 1 --t1 1"
    interface.main(words.split())
    folder = made / "defense" / "cbd"
    result = torch.load(folder / "defense_result.pt", weights_only=True)
    assert sorted(result) == ["model", "model_name", "num_classes"] and sorted(
        result["model"]
    ) == sorted(record.read(made).model)
    header, row = (folder / "cbd_df.csv").read_text().splitlines()
    assert header == ",epoch,test_acc,test_asr,test_ra" and row.startswith("0,0,")
    spec = json.loads((folder / "record.json").read_text())["spec"]
    assert (
        spec["seed"],
        spec["defense"]["t1"],
        spec["protocol"]["recipe"]["epochs"],
        spec["protocol"]["recipe"]["lr"],
    ) == (3, 1, 1, 0.02)
    assert list((folder / "log").glob("*.log"))
    for wrong, says in (
        ("cbdd --result_file made", "Did you mean 'cbd'"),
        ("cbd --dataset cifar10", "--result_file NAME is missing"),
        ("", "usage"),
        ("cbd --result_file nothing", "no such file"),
        ("cbd --result_file made --dataset gtsrb", "was made from cifar10"),
        ("cbd --result_file made --yaml_path no.yaml", "no.yaml: no such file"),
        ("cbd --result_file made --model resnet18", "holds a shufflenet"),
        ("cbd --result_file made --lr_scheduler StepLR", "lr_scheduler must be"),
    ):
        with pytest.raises(InputError, match=says):
            interface.main(wrong.split())


def test_what_mitigation_returns_takes_normalised_inputs():
    net = interface.Denormalised(torch.nn.Identity(), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    x = torch.rand(2, 3, 4, 4)
    mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    assert torch.allclose(net((x - mean) / std), x, atol=1e-6)


def test_flags_of_every_defense():
    for name in interface.DEFENSES:
        parser = argparse.ArgumentParser()
        interface.DEFENSES[name].add_arguments(parser)
        assert parser.parse_args(["--result_file", "x", "--device", "cpu"]).result_file == "x"


# --- its attacks in our grid


# an attack's script, of which the class decides what flags mean
STUB = """
from attack.prototype import NormalCase
from utils.aggregate_block.dataset_and_transform_generate import get_num_classes

class BadNet(NormalCase):
    def set_bd_args(self, parser):
        parser.add_argument('--attack', default='badnet')
        parser.add_argument('--attack_target', type=int)
        parser.add_argument('--pratio', type=float)
        parser.add_argument('--strength', type=int, default=1)
        return parser
    def add_bd_yaml_to_args(self, args):
        pass
    add_yaml_to_args = add_bd_yaml_to_args
    def process_args(self, args):
        args.classes = get_num_classes(args.dataset)
        return args
"""


# a script that writes down what it is given
SAYS = """
import json, sys
from torchvision.datasets import CIFAR10
import numpy as np
from utils.aggregate_block.dataset_and_transform_generate import get_num_classes

def flags(parser):
    parser.add_argument('--s')
    parser.add_argument('--random_seed')
    parser.add_argument('--pratio')
    parser.add_argument('--attack_target')

train, test = CIFAR10('./data', train=True, download=True), CIFAR10('./data', train=False)
said = {'images': np.asarray(train[7][0]).tolist(), 'labels': train.targets, 'flags': sys.argv[1:],
        'n': [len(train), len(test)], 'classes': get_num_classes('cifar10')}
open('said.json', 'w').write(json.dumps(said))
sys.exit(4)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a checkout: a dispatch that inverts the picture, a script that
    fails.
    """
    home = tmp_path / "home"
    (home / "utils" / "aggregate_block").mkdir(parents=True)
    (home / "attack").mkdir()
    (home / "utils" / "aggregate_block" / "bd_attack_generate.py").write_text(
        "import numpy as np\nfrom PIL import Image\n"
        "def bd_attack_img_trans_generate(args):\n"
        "    assert (args.attack, args.strength, args.pratio) == ('badnet', 2, 0.1), vars(args)\n"
        "    assert (args.attack_target, args.random_seed, args.classes) == (0, 5, 4), vars(args)\n"
        "    change = lambda img, target, image_serial_id: Image.fromarray(255 - np.array(img))\n"
        "    return change, change\n"
    )
    (home / "utils" / "aggregate_block" / "dataset_and_transform_generate.py").write_text(
        "def get_num_classes(dataset):\n    raise AssertionError('answered by us')\n"
    )
    (home / "attack" / "prototype.py").write_text(
        "class NormalCase:\n"
        "    def set_args(self, parser):\n"
        "        parser.add_argument('--dataset')\n"
        "        parser.add_argument('--random_seed', type=int)\n"
        "        return parser\n"
    )
    (home / "attack" / "badnet.py").write_text(STUB)
    (home / "attack" / "wanet.py").write_text(
        "import sys\nprint('step 1')\nprint('no such file: data')\nsys.exit(3)\n"
    )
    monkeypatch.setenv("BACKDOORBENCH_HOME", str(home))
    return home


def test_transforms_of_backdoorbench(checkout, tmp_path):
    """Our choice of images, its transform, in a process of its own; once for all cells."""
    data = npz(tmp_path / "data", *clean_sets())
    options = Options(out=tmp_path / "runs", data=data, device="cpu")
    cell = Suite(
        "grid", TINY, ("cifar10",), ("backdoorbench:badnet[strength=2,random_seed=5]",), ("none",)
    ).cells()[0]
    lab = Lab(cell, options)
    poisoned = lab.poisoned
    held = hold_out(clean_sets()[0], 0.1, seed_of(0, "reserve"))
    rest = clean_sets()[0][~held]
    assert poisoned.mask.sum() == 7 and (poisoned.y[poisoned.mask] == 0).all()
    assert torch.equal(poisoned.x[poisoned.mask], 255 - rest.x[poisoned.mask]) and torch.equal(
        poisoned.x[~poisoned.mask], rest.x[~poisoned.mask]
    )
    triggered = lab.triggered
    test = clean_sets()[1]
    assert torch.equal(triggered.x, 255 - test.x[test.y != 0]) and torch.equal(
        triggered.true, test.y[test.y != 0]
    )
    (checkout / "utils" / "aggregate_block" / "bd_attack_generate.py").write_text(
        "raise SystemExit(9)"
    )
    assert torch.equal(Lab(cell, options).poisoned.x, poisoned.x)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("badnet[strenth=2]", "Did you mean 'strength'"),
        ("badnet[pratio=0.3]", "pratio is decided by the cell"),
        ("badnet[attack_label_trans=all2all]", "attack_label_trans is decided by the cell"),
        ("ssba", "ssba_train_b1.npy of the checkout is not there"),
        ("blind[network=trained]", "makes no training set: say network=record"),
        ("blind[model=vgg]", "model is decided by the cell"),
        ("badnet[network=record]", "no network comes with them"),
        ("trojannn", "give pretrain_model_path"),
        ("ssba[attack_train_replace_imgs_path=/no.npy]", "/no.npy of the checkout is not there"),
    ],
)
def test_flags_of_its_attacks_are_checked_before_anything_runs(name, says, checkout, tmp_path):
    for script in ("ssba", "blind", "trojannn"):
        (checkout / "attack" / f"{script}.py").write_text(
            "parser.add_argument('--attack_train_replace_imgs_path')\n"
        )
    attack = registry.create("attacks", f"backdoorbench:{name}")
    with pytest.raises(InputError, match=says):
        attack.check(torch.zeros(1, 3, 8, 8))
    (checkout / "resource" / "ssba").mkdir(parents=True)
    (checkout / "resource" / "ssba" / "cifar10_ssba_train_b1.npy").write_text("")
    registry.create("attacks", "backdoorbench:ssba").check(torch.zeros(1, 3, 8, 8))


def test_an_attack_that_controls_the_training(checkout, tmp_path, monkeypatch):
    """Its record holds a network and triggered images, no training set: for defenses that start
    from the victim, whether its script runs or its record is read.
    """
    monkeypatch.setattr(checkout_module, "NEEDS_CUDA", ())
    there = tmp_path / "record" / "before"
    what = content(there, inside=True) | {"bd_train": None}
    saved(there, what)
    (checkout / "attack" / "lira.py").write_text(
        "import pathlib, shutil, sys\n"
        "def flags(parser):\n"
        "    parser.add_argument('--model')\n"
        "to = pathlib.Path('record', sys.argv[sys.argv.index('--save_folder_name') + 1])\n"
        "assert sys.argv[sys.argv.index('--model') + 1] == 'shufflenet_v2_x1_0'\n"
        f"shutil.copytree({str(there)!r}, to)\n"
    )
    data = npz(tmp_path / "data", *clean_sets())
    options = Options(out=tmp_path / "runs", data=data, device="cpu")
    names = ("none", "fp", "cbd[t1=1]")
    for attack in ("backdoorbench:lira", f"record:{there}"):
        none, repair, training = Suite("grid", TINY, ("cifar10",), (attack,), names).cells()
        Lab(repair, options).check()
        with pytest.raises(InputError, match="nothing to train on") as error:
            Lab(training, options).check()
        assert "\n" not in str(error.value)
        lab = Lab(none, options)
        lab.check()
        net = lab.engine().victim()
        assert torch.equal(net.state_dict()["backbone.fc.bias"], what["model"]["fc.bias"])
        assert not lab.poisoned.mask.any() and lab.triggered.mask.all()
        assert torch.equal(lab.poisoned.x, lab.train.x)
    words = ["defend", str(there), "--data", str(data), "--out", str(tmp_path / "defended")]
    assert here(*words, "--defense", "none", "--epochs", "1", "--jobs", "1") == 0


def test_a_script_trains_on_our_images_and_seed(checkout, tmp_path):
    """Whatever the data set is called there: what torchvision gives to the script is ours."""
    (checkout / "attack" / "wanet.py").write_text(SAYS)
    data = npz(tmp_path / "data", *clean_sets())
    suite = Suite("grid", TINY, ("cifar10",), ("backdoorbench:wanet[s=0.7]",), ("none",))
    cell = replace(suite, seeds=(3,)).cells()[0]
    lab = Lab(cell, Options(out=tmp_path / "runs", data=data, device="cpu"))
    with pytest.raises(RuntimeError, match="exit code 4"):
        _ = lab.poisoned
    said = json.loads((checkout / "said.json").read_text())
    train, _ = clean_sets()
    assert said["images"] == train.x[7].permute(1, 2, 0).tolist() and said["n"] == [80, 20]
    assert said["labels"] == train.y.tolist() and said["classes"] == 4
    flags = dict(zip(said["flags"][::2], said["flags"][1::2], strict=True))
    assert (flags["--random_seed"], flags["--s"], flags["--pratio"]) == ("3", "0.7", "0.1")
    (checkout / "attack" / "wanet.py").write_text(SAYS.replace("'--pratio'", "'--eps'"))
    assert "--pratio" not in lab.attack._words(0, 0.1, ""), "the script does not have it"
    assert "--cross_ratio" not in flags and flags["--attack_target"] == "0"


def test_a_script_that_fails(checkout, tmp_path, capsys):
    """Its last lines and exit code; the cell failed, the grid goes on."""
    data = npz(tmp_path / "data", *clean_sets())
    words = [
        "run",
        "--dataset",
        "cifar10",
        "--attacks",
        "backdoorbench:wanet,badnets[size=2]",
        "--defenses",
        "none",
        "--model",
        "bbx_test",
        "--epochs",
        "1",
    ]
    assert here(*words, "--data", str(data), "--out", str(tmp_path / "runs"), "--jobs", "1") == 1
    text = capsys.readouterr().err
    assert (
        "exit code 3: step 1 | no such file: data" in text
        and "badnets[size=2] none rate 0.1 seed 0  " in text
        and "1 of 2 cells failed" in text
    )


def test_names_with_and_without_a_checkout(checkout, monkeypatch, capsys):
    assert here("list", "attacks") == 0 and "backdoorbench:wanet" in capsys.readouterr().out
    assert (
        here("show", "backdoorbench:wanet") == 0
        and "BACKDOORBENCH_PYTHON" in capsys.readouterr().out
    )
    with pytest.raises(InputError, match="Did you mean 'backdoorbench:badnet'"):
        attacks.made("backdoorbench", "badnt", {}).check(torch.zeros(1, 3, 8, 8))
    monkeypatch.setenv("BACKDOORBENCH_HOME", str(checkout / "attack"))
    with pytest.raises(InputError, match="no checkout"):
        checkout_module.home()
    monkeypatch.delenv("BACKDOORBENCH_HOME")
    assert here("list", "attacks") == 0 and "backdoorbench:" not in capsys.readouterr().out
    with pytest.raises(InputError, match="set BACKDOORBENCH_HOME"):
        attacks.made("backdoorbench", "badnet", {}).check(torch.zeros(1, 3, 8, 8))


# --- the real thing


@pytest.fixture
def real_records():
    """A folder with clean.npz and record/badnet_tiny, record/badnet_tiny_shuffle, made by
    BackdoorBench f02e353.
    """
    if not os.environ.get("BBX_RECORDS"):
        pytest.skip("BBX_RECORDS does not name a folder of records made by BackdoorBench")
    return Path(os.environ["BBX_RECORDS"])


def real_sets(folder):
    with np.load(folder / "clean.npz") as data:
        return [
            Images(
                torch.from_numpy(data[f"{k}_images"]).permute(0, 3, 1, 2).contiguous(),
                torch.from_numpy(data[f"{k}_labels"]).long(),
                tuple(data["classes"]),
            )
            for k in ("train", "test")
        ]


def test_real_record(real_records):
    """Images, labels, indicator and true labels, against the PNG files themselves and an
    unrestricted reading of the file.
    """
    folder = real_records / "record" / "badnet_tiny"
    raw = torch.load(folder / "attack_result.pt", weights_only=False)
    train, test = real_sets(real_records)
    for which, clean in (("train", train), ("test", test)):
        found = record.read(folder).poisoned(which, clean)
        index = raw[f"bd_{which}"]["original_index_array"]
        assert (
            torch.equal(found.true, clean.y[index])
            and found.mask.tolist() == (raw[f"bd_{which}"]["poison_indicator"][index] == 1).tolist()
        )
        for row, place in enumerate(index):
            if found.mask[row]:
                entry = raw[f"bd_{which}"]["bd_data_container"]["data_dict"][place]
                pixels = np.array(Image.open(folder / entry["path"].split("badnet_tiny/")[1]))
                assert (
                    np.array_equal(found.x[row].permute(1, 2, 0).numpy(), pixels)
                    and [int(found.y[row]), int(found.true[row])] == entry["other_info"]
                )
                different = (found.x[row] != clean.x[place]).any(0).nonzero()
                assert (different >= 29).all()
            else:
                assert torch.equal(found.x[row], clean.x[place]) and found.y[row] == clean.y[place]
    assert record.read(folder).rate == 0.1


def test_real_numbers(real_records, tmp_path):
    """The record's network, measured here, gives the last row of its own CSV; then CBD trains on it
    for an epoch.
    """
    folder = real_records / "record" / "badnet_tiny_shuffle"
    (tmp_path / "cifar10.npz").symlink_to(real_records / "clean.npz")
    assert (
        here(
            "defend",
            str(folder),
            "--defense",
            "none,cbd[t1=1]",
            "--epochs",
            "1",
            "--data",
            str(tmp_path),
            "--out",
            str(tmp_path / "runs"),
        )
        == 0
    )
    found = {
        p.parent.name: json.loads(p.read_text())["metrics"]
        for p in (tmp_path / "runs").rglob("rate*.json")
    }
    last = (folder / "attack_df.csv").read_text().splitlines()[-1].split(",")
    for name, text in zip(("ca", "asr", "arr"), last[-3:], strict=True):
        hits, n = found["none"][name]
        # bf16 here, float32 there
        assert abs(hits - float(text) * n) <= 1
    assert "cbd[t1=1]" in found


SITE = """
import torch
import torchvision

field, draw = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.rand
for module in (torchvision.datasets.utils, torchvision.datasets.cifar):
    module.check_integrity = lambda *args, **more: True
torch.rand = lambda *shape, **more: field.clone() if shape == (1, 2, 4, 4) else draw(*shape, **more)
"""
"""In every Python that is started there: the checksums of the original CIFAR-10 are not asked for,
and where WaNet draws its field it is given ours.
"""


@pytest.fixture
def beside(tmp_path, real_records, monkeypatch):
    """BackdoorBench's folders with a CIFAR-10 of 400 and 200 images, and a way to run code there
    with its Python.
    """
    if not os.environ.get("BACKDOORBENCH_HOME"):
        pytest.skip("BACKDOORBENCH_HOME does not name a checkout of BackdoorBench")
    home, root = Path(os.environ["BACKDOORBENCH_HOME"]), tmp_path / "home"
    batches = root / "data" / "cifar10" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    folders = "attack config defense detection_pretrain utils models dataset resource"
    for name in folders.split():
        (root / name).symlink_to(home / name)
    with np.load(real_records / "clean.npz") as data:
        parts = [
            (f"data_batch_{i + 1}", "train", index)
            for i, index in enumerate(np.array_split(np.arange(400), 5))
        ]
        for name, which, index in [*parts, ("test_batch", "test", np.arange(200))]:
            rows = data[f"{which}_images"][index].transpose(0, 3, 1, 2).reshape(len(index), -1)
            (batches / name).write_bytes(
                pickle.dumps({"data": rows, "labels": data[f"{which}_labels"][index].tolist()})
            )
        (batches / "batches.meta").write_bytes(
            pickle.dumps({"label_names": data["classes"].tolist()})
        )
    (root / "cifar10.npz").symlink_to(real_records / "clean.npz")
    (root / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("BACKDOORBENCH_HOME", str(root))
    monkeypatch.chdir(root)
    python = os.environ.get("BACKDOORBENCH_PYTHON", sys.executable)
    here = str(Path(attacks.__file__).parent)

    def run(code):
        words = [
            python,
            "-c",
            f"import sys\nsys.path[:0] = ['.', {here!r}]\nimport "
            f"launch\nlaunch.old_names()\n{code}",
        ]
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return root, run


@pytest.mark.backdoorbench
def test_its_loader_and_defenses_take_our_record(beside, real_records):
    """``load_attack_result`` opens what we write and gives our images back; ft, abl and mcr run an
    epoch on it, and one of its detectors counts whom we have poisoned.
    """
    root, run = beside
    words = [
        "poison",
        "--attack",
        "badnets[pattern=white]",
        "--dataset",
        "cifar10",
        "--data",
        str(root),
        "--format",
        "backdoorbench",
        "--model",
        "torchvision:shufflenet_v2_x1_0",
        "--epochs",
        "1",
        "--out",
        "runs",
        "--to",
        "record/ours",
    ]
    assert here(*words) == 0
    run("""
import numpy as np
from utils.save_load_attack import load_attack_result
result = load_attack_result("record/ours/attack_result.pt")
read = {}
for part in ("train", "test"):
    images = result["bd_" + part].wrapped_dataset
    rows = [images[i] for i in range(len(images))]
    for i, name in enumerate(("x", "y", "place", "poisoned", "true")):
        read[f"{part}_{name}"] = np.array([np.array(row[i]) for row in rows])
np.savez("read.npz", **read)
""")
    back = record.read(Path("record/ours"))
    with np.load("read.npz") as read:
        for which, clean in zip(("train", "test"), real_sets(real_records), strict=True):
            ours = back.poisoned(which, clean)
            assert np.array_equal(read[f"{which}_x"], ours.x.permute(0, 2, 3, 1).numpy())
            for name, tensor in (("y", ours.y), ("true", ours.true), ("poisoned", ours.mask)):
                assert np.array_equal(read[f"{which}_{name}"], tensor.numpy())
    for name in ("ft", "abl", "mcr"):
        text = (root / "config" / "defense" / name / "cifar10.yaml").read_text()
        Path(f"{name}.yaml").write_text(
            text.replace("num_workers: 4", "num_workers: 0")
            .replace("'cuda'", "'cpu'")
            .replace("amp: True", "amp: False")
        )
        flags = [
            "x",
            "--result_file",
            "ours",
            "--yaml_path",
            f"{name}.yaml",
            "--epochs",
            "1",
            "--batch_size",
            "64",
            "--model",
            "shufflenet_v2_x1_0",
        ]
        short = {
            "abl": ("tuning_epochs", "finetuning_epochs", "unlearning_epochs"),
            "mcr": ("train_curve_epochs", "ft_epochs"),
        }
        for flag in short.get(name, ()):
            flags += [f"--{flag}", "1"]
        if name != "abl":
            flags += ["--index", "record/ours/reserve.txt"]
        run(
            f"import runpy\nsys.argv = {flags!r}\nrunpy.run_path('defense/{name}.py', "
            "run_name='__main__')"
        )
        found = torch.load(f"record/ours/defense/{name}/defense_result.pt", weights_only=True)
        assert found["model_name"] == "shufflenet_v2_x1_0"
    settings = (root / "config/detection/cd/cifar10.yaml").read_text()
    settings = settings.replace("num_workers: 4", "num_workers: 0").replace("'cuda'", "'cpu'")
    Path("detector.yaml").write_text(settings.replace("amp: True", "amp: False"))
    flags = "x --result_file ours --yaml_path detector.yaml --model shufflenet_v2_x1_0"
    flags += " --cd_num_steps 1 --csv_save_path its.csv"
    run(
        f"import runpy\nsys.argv = {flags.split()!r}\n"
        "runpy.run_path('detection_pretrain/cd.py', run_name='__main__')"
    )
    found = next(Path("record/ours").rglob("detection_info.csv"))
    names, numbers = (line.split(",") for line in found.read_text().splitlines()[:2])
    counted = dict(zip(names, numbers, strict=True))
    assert int(counted["TP"]) + int(counted["FN"]) == int(back.train.replaced.sum())
    assert sum(int(counted[name]) for name in ("TP", "FN", "TN", "FP")) == 400


@pytest.mark.backdoorbench
def test_its_triggers_are_ours(beside, tmp_path):
    """badnet: every pixel; blended and sig: ours rounds where it cuts off, so at most one grey
    level, never below it.
    """
    root, _ = beside
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(
        root / "picture.png"
    )
    options = Options(out=tmp_path / "runs", data=root, device="cpu")
    pairs = (
        (
            "badnet[patch_mask_path=./resource/badnet/trigger_image.png]",
            BadNets(pattern="white"),
            0.1,
            0,
        ),
        (
            "blended[attack_trigger_img_path=./picture.png]",
            Blend(alpha=0.2, pattern=str(root / "picture.png")),
            0.1,
            1,
        ),
        ("sig", SIG(delta=40), 0.02, 1),
    )
    for name, ours, rate, most in pairs:
        cell = Suite(
            "grid",
            replace(RULES, crop=0),
            ("cifar10",),
            (f"backdoorbench:{name}",),
            ("none",),
            rates=(rate,),
        ).cells()[0]
        lab = Lab(cell, options)
        poisoned = lab.poisoned
        for clean, theirs in (
            (lab.train[poisoned.mask].x, poisoned.x[poisoned.mask]),
            (lab.test.x[lab.test.y != 0], lab.triggered.x),
        ):
            difference = ours.stamp(clean).int() - theirs.int()
            assert difference.min() >= 0 and difference.max() <= most, (
                name,
                difference.min(),
                difference.max(),
            )


@pytest.mark.backdoorbench
def test_its_wanet_is_ours(beside, tmp_path):
    """Its script in our grid, with our field: the warped pictures differ by its cutting off."""
    root, _ = beside
    cell = Suite(
        "grid",
        replace(RULES, crop=0),
        ("cifar10",),
        ("backdoorbench:wanet[epochs=1,model=shufflenet_v2_x1_0,num_workers=0,batch_size=50]",),
        ("none",),
    ).cells()[0]
    lab = Lab(cell, Options(out=tmp_path / "runs", data=root, device="cpu"))
    difference = WaNet().stamp(lab.test.x[lab.test.y != 0]).int() - lab.triggered.x.int()
    assert difference.abs().max() <= 1 and lab.poisoned.mask.any()

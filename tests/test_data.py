"""Data sets: what is read, and one clear line for what cannot be."""

import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from conftest import RULES
from PIL import Image

from backdoorbench_ext import datasets
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.protocols import PROTOCOLS
from backdoorbench_ext.suite import Suite


def arrays(**changed):
    rng = np.random.default_rng(0)
    base = {
        "train_images": rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(6) % 3,
        "classes": np.array(["a", "b", "c"]),
    }
    return {key: value for key, value in (base | changed).items() if value is not None}


@pytest.fixture
def npz(tmp_path):
    def write(**changed):
        np.savez(tmp_path / "set.npz", **arrays(**changed))
        return f"npz:{tmp_path / 'set.npz'}"

    return write


@pytest.fixture
def folder(tmp_path):
    for split, n in (("train", 4), ("val", 2)):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(np.full((6, 5, 3), 10 * i + (label == "b"), np.uint8)).save(
                    tmp_path / split / label / f"{i}.png"
                )
    return tmp_path


def test_npz(npz):
    train, test = datasets.load(npz())
    assert train.classes == ("a", "b", "c") and len(test) == 6
    assert torch.equal(train.x, torch.from_numpy(arrays()["train_images"]).permute(0, 3, 1, 2))
    assert train.y.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"test_labels": None}, "lacks test_labels"),
        ({"train_labels": np.arange(12) % 4}, "label 3 is out of range, there are 3 classes"),
        ({"train_labels": np.arange(12) % 3 - 1}, "label -1 is out of range"),
        ({"train_labels": np.arange(12) % 2}, "class 'c' has no image"),
        ({"train_labels": np.arange(11) % 3}, "must be 12 integers"),
        ({"train_labels": np.linspace(0, 2, 12)}, "must be 12 integers, not float64"),
        ({"train_images": np.zeros((12, 8, 8, 3), np.float32)}, "must be uint8"),
        ({"train_images": np.zeros((12, 8, 8), np.uint8)}, "must be uint8"),
        ({"classes": np.array(["a", object()], dtype=object)}, "damaged, or no .npz"),
    ],
)
def test_bad_npz(npz, changed, says):
    with pytest.raises(InputError, match=says) as error:
        datasets.load(npz(**changed))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no zip at all", None])
def test_damaged_npz(npz, tmp_path, content):
    name = npz()
    file = tmp_path / "set.npz"
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    with pytest.raises(InputError, match="damaged"):
        datasets.load(name)


def test_folder(folder):
    train, test = datasets.load(f"folder:{folder}")
    assert train.classes == ("a", "b") and train.x.shape == (8, 3, 6, 5) and len(test) == 4
    assert train.x[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 1, 11, 21, 31]
    assert datasets.load(f"folder:{folder}[size=7]")[0].x.shape == (8, 3, 7, 7)


def test_what_lies_hidden_is_no_class_and_no_image(folder):
    """Jupyter's checkpoints, a Mac's archive, a dot before a name."""
    before = datasets.digest(datasets.load(f"folder:{folder}"))
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (folder / "train" / name).mkdir()
        Image.new("RGB", (5, 6)).save(folder / "train" / name / "0.png")
    (folder / "train" / "a" / "._0.png").write_bytes(b"Mac OS X")
    assert datasets.digest(datasets.load(f"folder:{folder}")) == before


def test_bad_folder(folder):
    name = f"folder:{folder}"
    Image.new("RGB", (9, 9)).save(folder / "train" / "b" / "9.png")
    with pytest.raises(
        InputError, match=r"9\.png: 9x9 pixels, the images before it have 5x6; give \[size=N\]"
    ):
        datasets.load(name)
    (folder / "train" / "b" / "9.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(InputError, match="not a readable image"):
        datasets.load(name)
    (folder / "train" / "b" / "9.png").unlink()
    (folder / "train" / "c").mkdir()
    with pytest.raises(InputError, match="differ in the classes c"):
        datasets.load(name)
    (folder / "val" / "c").mkdir()
    with pytest.raises(InputError, match="train/c: no images"):
        datasets.load(name)
    with pytest.raises(InputError, match="train/ is missing"):
        datasets.load(f"folder:{folder / 'train'}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar11", "Did you mean 'cifar10'"),
        ("cifar10", "needs --data DIR"),
        ("digits[trian=100]", "Did you mean 'train'"),
        ("digits[train=5]", "at least one a class"),
        ("digits[test=1.5]", "must be a number of images"),
        ("digits[test=100000]", "needs 10000 images of class '0', there are"),
        ("npz:/nowhere/x.npz", "no such file"),
    ],
)
def test_bad_names(name, says):
    with pytest.raises(InputError, match=says):
        datasets.load(name)


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "imagenette"])
def test_missing_files(name, tmp_path):
    with pytest.raises(InputError, match=f"{name}: not readable in .*--download fetches"):
        datasets.load(name, tmp_path)


def test_digits():
    train, test = datasets.digits()
    again, _ = datasets.digits()
    assert torch.equal(train.x, again.x) and torch.equal(train.y, again.y)
    assert train.x.shape == (4000, 3, 32, 32) and test.x.shape == (1000, 3, 32, 32)
    assert train.y.bincount().min() > 350 and test.y.bincount().min() >= 80


def test_subset():
    whole, _ = datasets.load("digits")
    part, _ = datasets.load("digits[train=103]")
    assert part.y.bincount().tolist() == [11, 11, 11] + [10] * 7
    rows = {x.numpy().tobytes() for x in whole.x}
    assert all(x.numpy().tobytes() in rows for x in part.x)


@pytest.mark.parametrize(
    ("name", "n", "classes", "shape"),
    [("cifar10", 50000, 10, 32), ("gtsrb", 13070, 43, 32), ("imagenette", 1500, 10, 224)],
)
def test_real(name, n, classes, shape, real_data):
    train, test = datasets.load(name, real_data)
    assert len(train) == n and len(train.classes) == classes == len(test.classes)
    assert train.x.shape[1:] == (3, shape, shape)


def idx(array):
    """IDX, as MNIST's makers write it: two zero bytes, type, number of axes, sizes, bytes."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def fashion_files(folder, suffix=".gz"):
    """Fashion-MNIST with 20 training and 10 test images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    made = {}
    for part, n in (("train", 20), ("t10k", 10)):
        made[part] = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        for what, array in zip(("images-idx3", "labels-idx1"), made[part], strict=True):
            data = gzip.compress(idx(array)) if suffix else idx(array)
            (folder / f"{part}-{what}-ubyte{suffix}").write_bytes(data)
    return made


@pytest.mark.parametrize(("where", "suffix"), [("", ".gz"), ("FashionMNIST/raw", "")])
def test_fashion_mnist(where, suffix, tmp_path):
    """Its makers' files or torchvision's: pixels stay as they are, inside a black border."""
    made = fashion_files(tmp_path / where, suffix)
    train, test = datasets.load("fashion_mnist", tmp_path)
    assert train.x.shape == (20, 3, 32, 32) and len(test) == 10
    assert (train.x[:, 1, 2:-2, 2:-2].numpy() == made["train"][0]).all()
    assert train.x[:, :, :2].max() == 0 and train.y.tolist() == made["train"][1].tolist()
    assert train.classes[9] == "ankle boot"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda file: file.unlink(), "fashion_mnist: not readable in .*--download fetches"),
        (lambda file: file.write_bytes(b"no gzip"), "ubyte.gz: damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "ubyte.gz: damaged"),
        (lambda file: file.write_bytes(gzip.compress(b"x" * 99)), "not an IDX file of bytes"),
        (lambda file: file.write_bytes(gzip.compress(idx(np.zeros((2, 28, 28))))), "labels"),
        (lambda file: file.write_bytes(gzip.compress(b"\0\0\x08")), "ubyte.gz: damaged"),
    ],
)
def test_damaged_fashion_mnist_is_one_line(break_it, says, tmp_path):
    fashion_files(tmp_path)
    break_it(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(InputError, match=says):
        datasets.load("fashion_mnist", tmp_path)


def tiny_files(root):
    """Tiny ImageNet's layout with two classes of three training and two validation images."""
    base = root / "tiny-imagenet-200"
    lines = []
    for label, name in enumerate(("n001", "n002")):
        folder = base / "train" / name / "images"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64), (100 * label, i, 0)).save(folder / f"{name}_{i}.JPEG")
        for i in range(2):
            held = base / "val" / "images" / f"val_{2 * label + i}.JPEG"
            held.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (64, 64), 50 * label).save(held)
            lines.append(f"{held.name}\t{name}\t0\t0\t62\t62\n")
    (base / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    return base


def test_tiny_imagenet(tmp_path):
    """Labels of validation images are read from its file; grey images get three channels."""
    tiny_files(tmp_path)
    train, test = datasets.load("tiny_imagenet", tmp_path)
    assert train.classes == ("n001", "n002") and train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.x.shape == (6, 3, 64, 64) and test.y.tolist() == [1, 1, 0, 0]
    assert abs(int(test.x[0, 0, 0, 0]) - 50) < 3 and test.x[2].max() < 3
    small, _ = datasets.load("tiny_imagenet[size=32]", tmp_path)
    assert small.x.shape[2:] == (32, 32)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda base: shutil.rmtree(base), "unpack tiny-imagenet-200.zip"),
        (lambda base: (base / "val/val_annotations.txt").unlink(), "lacks train/ or val_ann"),
        (lambda base: (base / "val/val_annotations.txt").write_text("val_0.JPEG\tn9"), "no class"),
        (lambda base: (base / "val/images/val_0.JPEG").unlink(), "no class or no image"),
        (lambda base: (base / "val/images/val_0.JPEG").write_text("x"), "val_0.JPEG"),
        (lambda base: (base / "val/val_annotations.txt").write_text(""), "no images"),
    ],
)
def test_damaged_tiny_imagenet_is_one_line(break_it, says, tmp_path):
    break_it(tiny_files(tmp_path))
    with pytest.raises(InputError, match=says):
        datasets.load("tiny_imagenet", tmp_path)
    with pytest.raises(InputError, match="torchvision cannot download it"):
        datasets.load("tiny_imagenet", tmp_path, download=True)


@pytest.mark.parametrize("name", ["cifar100", "svhn"])
def test_by_torchvision(name, tmp_path, monkeypatch):
    """Its readers' arrays become ours; without files there is one line."""
    with pytest.raises(InputError, match=f"{name}: not readable in .*--download fetches"):
        datasets.load(name, tmp_path)
    n = 20
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)

    class CIFAR100:
        data = pixels
        targets = tuple(i % 10 for i in range(n))
        classes = tuple(f"class {i}" for i in range(10))

        def __init__(self, root, train, download):
            pass

    class SVHN:
        data = pixels.transpose(0, 3, 1, 2)
        labels = np.arange(n) % 10

        def __init__(self, root, split, download):
            pass

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", CIFAR100)
    monkeypatch.setattr(torchvision.datasets, "SVHN", SVHN)
    train, _ = datasets.load(name, tmp_path)
    assert train.x.shape == (n, 3, 32, 32) and train.x.is_contiguous()
    assert (train.x.permute(0, 2, 3, 1).numpy() == pixels).all()
    assert train.y.dtype == torch.int64 and len(train.classes) == 10


def test_digits_are_not_mirrored(tmp_path):
    """And what a protocol says of other data sets does not part a grid from what ran before."""
    theirs = PROTOCOLS["backdoorbench"]
    assert theirs.on("cifar10").flip
    assert not any(theirs.on(name).flip for name in ("cifar100", "gtsrb", "tiny_imagenet"))
    assert theirs.on("tiny_imagenet").recipe.epochs == 200
    assert all(not rules.on("svhn").flip for rules in PROTOCOLS.values())
    before = Suite("grid", RULES, ("digits",), ("badnets",), ("none",), seeds=(0,))
    before.save(tmp_path)
    now = replace(before, protocol=replace(RULES, overrides={"svhn": {"flip": False}}), seeds=(1,))
    assert now.joined(tmp_path).seeds == (0, 1)
    other = replace(now, protocol=replace(RULES, overrides={"digits": {"target": 1}}))
    assert other.joined(tmp_path).seeds == (1,)

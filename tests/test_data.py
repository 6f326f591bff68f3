"""Data sets: what is read, and one clear line for what cannot be."""

import numpy as np
import pytest
import torch
from PIL import Image

from backdoorbench_ext import datasets
from backdoorbench_ext.errors import InputError


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

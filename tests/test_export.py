"""Poisoned sets as files, the gallery of triggers, and what their commands refuse."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
from conftest import RULES, here, make_images

import backdoorbench_ext as bbx
from backdoorbench_ext import datasets, export, pictures, plots, records, suite
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.images import Poisoned
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite


def cell(attack="wanet", dataset="digits[train=200,test=40]"):
    return Suite("grid", RULES, (dataset,), (attack,), ("none",)).cells()[0]


@pytest.fixture
def options(tmp_path):
    return Options(out=tmp_path / "runs", device="cpu")


def test_png(options, tmp_path):
    """Every file holds its pixels under its given label; the manifest tells poisoned, cover and
    true label; folder: reads it back.
    """
    lab = Lab(cell(), options)
    train = lab.poisoned
    counts = export.poisoned(cell(), options, tmp_path / "set", "png")
    assert counts == {"train": 190, "test": 40, "triggered": 36, "reserve": 10}
    rows = list(csv.DictReader((tmp_path / "set" / "manifest.csv").read_text().splitlines()))
    assert len(rows) == 276 and list(rows[0]) == ["file", "label", "true label", "poisoned"]
    for row in rows:
        image = cv2.imread(str(tmp_path / "set" / row["file"]))[:, :, ::-1]
        part, label, name = row["file"].split("/")
        assert label == row["label"]
        if part == "train":
            i = int(name[:-4])
            assert (
                np.array_equal(image, train.x[i].permute(1, 2, 0))
                and int(row["true label"]) == train.true[i]
            )
            assert int(row["poisoned"]) == int(train.mask[i]) + 2 * int(train.cover[i])
    assert [
        sum(r["poisoned"] == m and r["file"].startswith("train") for r in rows) for m in "012"
    ] == [133, 19, 38]
    again, test = datasets.load(f"folder:{tmp_path / 'set'}")
    assert torch.equal(again.y.bincount(), train.y.bincount()) and torch.equal(
        test.y.bincount(), lab.test.y.bincount()
    )
    spec = json.loads((tmp_path / "set" / "spec.json").read_text())
    assert spec["attack"]["name"] == "wanet" and spec["rate"] == 0.1 and "defense" not in spec
    with pytest.raises(InputError, match="exists already"):
        export.poisoned(cell(), options, tmp_path / "set", "png")


def test_npz(options, tmp_path):
    train = Lab(cell("badnets"), options).poisoned
    export.poisoned(cell("badnets"), options, tmp_path / "set.npz", "npz")
    again, test = datasets.load(f"npz:{tmp_path / 'set.npz'}")
    assert torch.equal(again.x, train.x) and torch.equal(again.y, train.y) and len(test) == 40
    with np.load(tmp_path / "set.npz") as held:
        assert np.array_equal(held["train_poisoned"], train.mask) and np.array_equal(
            held["train_true_labels"], train.true
        )
    with pytest.raises(InputError, match=r"must end in \.npz"):
        export.poisoned(cell(), options, tmp_path / "set2", "npz")


def test_what_is_learned_is_learned_once(options, caplog):
    """The fitted attack, the clean network and the refined images are files that the next cell
    reads.
    """
    text = "adaptive_noise[base=trojan[steps=3],epochs=1]"
    first = Lab(cell(text), options).poisoned
    files = {
        file: file.stat().st_mtime_ns for file in (options.out / ".shared").glob("*.safetensors")
    }
    assert sorted(file.name.rpartition("-")[0] for file in files) == [
        "adaptive_noise",
        "adaptive_noise-poisoned",
        "clean",
    ]
    assert not list((options.out / ".shared").glob("*.state"))
    assert torch.equal(Lab(cell(text), options).poisoned.x, first.x)
    assert files == {file: file.stat().st_mtime_ns for file in files}
    damaged = next(file for file in files if "poisoned" in file.name)
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert torch.equal(Lab(cell(text), options).poisoned.x, first.x), "it is made anew"
    assert f"{damaged}: damaged, made anew" in caplog.text


def test_gallery(options, tmp_path):
    shown = [(name, *Lab(cell(name), options).specimen()) for name in ("badnets", "ctrl")]
    assert all(
        len(before) == len(after) == n
        for n, (_, before, after) in zip((40, 19), shown, strict=True)
    )
    files = plots.save(pictures.gallery(shown, beside=1), tmp_path / "gallery")
    assert [file.suffix for file in files] == [".pdf", ".png"] and all(
        file.stat().st_size > 5000 for file in files
    )


def test_change_in_numbers(options):
    """As OpenCV has the ratio; an image that stays as it is has no noise."""
    before, after = (images.x for images in Lab(cell("blend"), options).specimen())
    mean, ratio = pictures.change(before, after)
    pairs = list(zip(before.numpy(), after.numpy(), strict=True))
    assert mean == pytest.approx(np.mean([np.abs(b.astype(int) - a) for a, b in pairs]))
    ratios = torch.tensor([cv2.PSNR(a, b) for a, b in pairs])
    assert ratio == pytest.approx(float(ratios.median()), abs=1e-3)
    assert pictures.change(before, before) == (0, float("inf"))


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = (
        "poison",
        "--attack",
        "badnets",
        "--dataset",
        "digits[train=200,test=20]",
        "--device",
        "cpu",
    )
    assert (
        here(*words, "--to", "set.npz") == 0
        and "wrote set.npz: 190 train, 20 test, 18 triggered, 10 reserve" in capsys.readouterr().err
    )
    for more, says in (
        (("--rate", "0"), "poisoning rate must lie in (0, 1], not 0"),
        (("--rate", "1.5"), "poisoning rate must lie in (0, 1], not 1.5"),
        (("--target", "12"), "target 12 is no class: target must lie in [0, 9]"),
        (("--format", "zip"), "format must be one of png, npz"),
    ):
        assert here(*words, "--to", "other", *more) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and not (tmp_path / "other").exists()
    assert (
        here("plot", "galery", "demo") == 2 and "Did you mean 'gallery'" in capsys.readouterr().err
    )


def test_tsne_of_what_an_audit_kept(tmp_path, monkeypatch, capsys):
    """The result's embedding, those of probes, and both of MCCI's; images by class, triggered ones
    without the target class.
    """
    defenses = "none,fp[images=4,epochs=1],cbd[t1_steps=1],mcci[images=4]"
    words = [
        "--dataset",
        "digits[train=200,test=60]",
        "--attacks",
        "badnets",
        "--defenses",
        defenses,
        "--model",
        "bbx_test",
        "--epochs",
        "1",
    ]
    assert here("run", *words, "--out", tmp_path, "--jobs", "1", "--audit") == 0
    (folder,) = tmp_path.glob("own*")
    shown = []
    monkeypatch.setattr(
        pictures, "tsne", lambda panels, *_: shown.extend(panels) or plots.plt.figure()
    )
    assert here("plot", "tsne", folder, "--format", "png") == 0 and (folder / "tsne.png").exists()
    titles = [
        "No Defense",
        "FP [images=4,epochs=1]",
        *(f"CBD [t1_steps=1]{net}" for net in ("", "\nf_B")),
    ]
    titles += [f"MCCI [images=4]\nown spectrum {net}" for net in ("AIN", "SFRN")]
    assert [title.rpartition("\n")[0] for title, *_ in shown] == titles
    for _, clean, classes, triggered, true in shown:
        assert (
            len(clean) == len(classes) == 60
            and len(triggered) == len(true) == int((classes != 0).sum())
            and (true != 0).all()
        )
        assert clean.shape[1] == triggered.shape[1] and not torch.equal(
            clean[: len(triggered)], triggered
        )
    assert (
        here("plot", "learning", folder, "--format", "png") == 0
        and (folder / "learning.png").exists()
    )
    curves = {r["cell"]["defense"]: set(r["curves"]) for r in records.read_all(folder)}
    assert (
        "SFRN + AIN, ASR" in curves["mcci[images=4]"]
        and "f_C, ARR" in curves["cbd[t1_steps=1]"]
        and "train, CA" in curves["fp[images=4,epochs=1]"]
    )
    for file in folder.rglob("*.embeddings"):
        file.unlink()
    assert here("plot", "tsne", folder) == 2 and "--audit keeps them" in capsys.readouterr().err


def test_a_figure_is_looked_into_without_being_asked(tmp_path):
    """The papers' figures of losses and embeddings are suites that say so, and their folders of
    results say it, too.
    """
    figures = ("cbd_figure3", "cbd_figure4", "cbd_premise", "mcci_figure3", "mcci_figure6")
    assert all(suite.load(name).audit for name in figures) and not suite.load("cbd_table1").audit
    file = tmp_path / "looked.py"
    file.write_text("""from conftest import RULES
from backdoorbench_ext.suite import Suite
SUITE = Suite("looked", RULES, ("digits[train=200,test=60]",), ("badnets",), ("none",), audit=True)
""")
    assert here("run", file, "--out", tmp_path, "--jobs", "1") == 0
    folder = tmp_path / "looked"
    (record,) = (records.read(one) for one in folder.rglob("rate*.json"))
    assert (
        {"train, clean loss", "train, poisoned loss"} < set(record["curves"])
        and list(folder.rglob("*.embeddings"))
        and suite.load(str(folder)).audit
    )
    assert here("report", folder) == 0 and all(
        kind in (folder / "report.html").read_text() for kind in ("t-SNE", "no defense sees")
    )


def test_embeddings_belong_to_their_images():
    """They are found again, in the images' order, by asking the network for a chosen image."""
    train, test = datasets.load("digits[train=200,test=60]")
    engine = Engine(RULES, train)
    net = engine.new_model()
    bad = Poisoned(
        test.x[:20],
        test.y[:20],
        test.classes,
        test.y[:20],
        torch.ones(20).bool(),
        torch.zeros(20).bool(),
    )
    kept = engine.embeddings(net, test, bad, n=30)
    assert (
        set(kept) == {"true/clean", "true/triggered", "/clean", "/triggered"}
        and len(kept["/clean"]) == 30
        and len(kept["/triggered"]) == 20
    )
    every = engine.predict(net, test, net.features)
    places = torch.cdist(kept["/clean"], every).argmin(1)
    assert len(places.unique()) == 30 and torch.equal(test.y[places], kept["true/clean"])
    places = torch.cdist(kept["/triggered"], every[:20]).argmin(1)
    assert len(places.unique()) == 20 and torch.equal(test.y[places], kept["true/triggered"])


def test_tsne_draws_classes_and_edges():
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(30) % 3
    figure = pictures.tsne(
        [
            (
                "one",
                torch.randn(30, 4, generator=rng) + 9 * classes[:, None],
                classes,
                torch.randn(10, 4, generator=rng),
                classes[:10],
            )
        ]
        * 5
    )
    used = [ax for ax in figure.axes if ax.collections]
    assert len(used) == 5 and [len(found.get_offsets()) for found in used[0].collections] == [
        30,
        10,
    ]
    clean, triggered = used[0].collections
    assert (
        triggered.get_array().tolist() == classes[:10].tolist()
        and clean.get_clim() == triggered.get_clim()
    )
    plots.plt.close(figure)
    figure = pictures.tsne(
        [
            (
                "of 43",
                torch.randn(40, 4, generator=rng),
                torch.arange(40),
                torch.randn(3, 4, generator=rng),
                torch.tensor([0, 39, 42]),
            )
        ]
    )
    clean, triggered = figure.axes[0].collections
    assert (
        clean.get_clim() == triggered.get_clim()
        and len({tuple(colour) for colour in triggered.to_rgba(range(43))}) == 43
    ), "each class its own"
    plots.plt.close(figure)


def test_classes_keep_their_order(options, tmp_path):
    """Twelve classes whose names sort otherwise than they count keep their labels."""
    images = make_images(240, classes=12)
    names = tuple(str(n) for n in range(12))
    x = images.x.permute(0, 2, 3, 1).numpy()
    sets = {f"{name}_images": x for name in ("train", "test")}
    sets |= {f"{name}_labels": images.y.numpy() for name in ("train", "test")}
    np.savez(tmp_path / "own.npz", **sets, classes=np.array(names))
    own = cell("badnets", f"npz:{tmp_path / 'own.npz'}")
    export.poisoned(own, options, tmp_path / "set", "png")
    again, test = datasets.load(f"folder:{tmp_path / 'set'}")
    lab = Lab(own, options)
    assert again.classes == test.classes == names
    assert torch.equal(again.y.bincount(), lab.poisoned.y.bincount())
    (tmp_path / "set" / "classes.json").write_text('["0"]')
    with pytest.raises(InputError, match="its classes are not the folders"):
        datasets.load(f"folder:{tmp_path / 'set'}")


def test_networks_with_their_cards(tmp_path, capsys, monkeypatch):
    """Weights that are loaded again, ONNX that answers the same, and what each can do."""
    words = ("run", "--dataset", "digits[train=200,test=60]", "--attacks", "badnets")
    words += ("--defenses", "none,mcci[images=2]", "--model", "bbx_test", "--epochs", 1)
    words += ("--device", "cpu", "--jobs", 1, "--name", "kept", "--out", tmp_path)
    assert here(*words, "--save-models") == 0
    folder = tmp_path / "kept-epochs1-bbx_test"
    assert here("export", folder, "--to", tmp_path / "handed") == 0
    capsys.readouterr()
    made = {path.name.split("-")[2]: path for path in (tmp_path / "handed").iterdir()}
    assert set(made) == {"none", "mcci[images=2]"}
    card = (made["none"] / "README.md").read_text()
    assert "No Defense against badnets" in card and "Do not deploy it" in card
    assert "Classes, from 0: 0, 1, 2" in card and "| ASR |" in card and '"seed": 0' in card
    assert "its defense alone can build" in (made["mcci[images=2]"] / "README.md").read_text()
    net = bbx.load_model(made["none"] / "model.safetensors")
    kept = json.loads((made["none"] / "record.json").read_text())
    assert kept["cell"]["defense"] == "none"
    # nothing is written over, nothing is made of nothing
    assert here("export", folder, "--to", tmp_path / "handed") == 2
    assert here("export", folder, "--to", tmp_path / "x", "--format", "pickle") == 2
    assert here("export", "demo", "--to", tmp_path / "x", "--out", tmp_path) == 2
    assert "no networks; bbx run --save-models keeps them" in capsys.readouterr().err

    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert here("export", folder, "--to", tmp_path / "onnx", "--format", "onnx") == 0
    assert "left out: " in capsys.readouterr().err
    (only,) = (tmp_path / "onnx").iterdir()
    session = onnxruntime.InferenceSession(only / "model.onnx")
    x = torch.rand(5, 3, 32, 32)
    (logits,) = session.run(None, {"images": x.numpy()})
    assert torch.allclose(torch.from_numpy(logits), net(x), atol=1e-5)

"""What goes wrong from outside: a line each, nothing lost, executed or written elsewhere."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RULES, here, make_images
from PIL import Image

from backdoorbench_ext import (
    datasets,
    devices,
    export,
    files,
    models,
    plots,
    reading,
    records,
    registry,
    runner,
    signals,
    suite,
    tables,
    work,
)
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError, one_line
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite
from backdoorbench_ext.toolbox import record as toolbox

GRID = Suite("grid", RULES, ("digits[train=100,test=20]",), ("badnets",), ("none",))


@pytest.fixture
def tree(tmp_path):
    """A folder of two classes, four images each, and two to test."""
    for part, n in (("train", 4), ("test", 2)):
        for label in "ab":
            (tmp_path / "set" / part / label).mkdir(parents=True)
            for i in range(n):
                image = np.full((6, 5, 3), 10 * i + (label == "b"), np.uint8)
                Image.fromarray(image).save(tmp_path / "set" / part / label / f"{i}.png")
    return tmp_path / "set"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder of results with one record."""
    out = tmp_path_factory.mktemp("done")
    plan = runner.plan(GRID.changed(epochs=1), GRID.changed(epochs=1).cells(), Options(out=out))
    runner.run(plan, jobs=1)
    return plan.folder


def copied(done, tmp_path):
    """A copy of the results, and the file of its record."""
    subprocess.run(["cp", "-r", done, tmp_path / done.name], check=True)
    (file,) = (tmp_path / done.name).rglob("rate*.json")
    return tmp_path / done.name, file


# pictures


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(x) pop\n%%EOF\n"


def test_an_eps_called_png_starts_no_program(tmp_path, monkeypatch):
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path / 'executed'}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    file = tmp_path / "x.png"
    file.write_bytes(EPS)
    with pytest.raises(InputError, match=r"x\.png: not a readable image \(no image, or of a"):
        reading.picture(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda f: f.symlink_to("/dev/zero"), "not a regular file"),
        (lambda f: f.symlink_to(f), "Too many levels of symbolic links"),
        (Path.mkdir, "not a regular file"),
        (lambda f: f.symlink_to("nowhere"), "no such file"),
        (lambda f: Image.new("1", (13_000, 13_000)).save(f), "pixels are too many|exceeds limit"),
        (lambda f: Image.effect_noise((16, 16), 9).save(f) or os.truncate(f, 150), "truncated"),
        (lambda f: Image.new("F", (4, 4)).save(f, "TIFF"), "floating point"),
    ],
)
def test_refused_pictures(make, says, tmp_path):
    file = tmp_path / "x.png"
    make(file)
    with pytest.raises(InputError, match=says):
        reading.picture(file)


def test_sixteen_bits_and_turned_pictures(tmp_path, tree):
    """The upper eight bits, not what is above 255 cut off; as the camera was held; the same for a
    data set and for a pattern.
    """
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    Image.fromarray(values).save(tmp_path / "x.png")
    assert reading.picture(tmp_path / "x.png")[..., 0].tolist() == (values // 256).tolist()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (6, 4), "red").save(tmp_path / "y.jpg", exif=turned)
    assert reading.picture(tmp_path / "y.jpg").shape == (6, 4, 3)
    pattern = registry.create("attacks", f"blend[alpha=1.0,pattern={tmp_path / 'x.png'}]")
    seen = pattern.stamp(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert seen[0, 0].tolist() == (values // 256).tolist()


def test_more_kinds_of_files_are_images_and_others_are_told(tree, capsys):
    for suffix in ("tif", "gif", "jfif", "pgm"):
        Image.new("L", (5, 6)).save(tree / "train" / "a" / f"z.{suffix}")
    (tree / "train" / "a" / "notes.txt").write_text("x")
    train, _ = datasets.load(f"folder:{tree}")
    assert len(train) == 12
    assert "train/a: left out, since they are no images: 1 of .txt" in capsys.readouterr().err


def test_layouts_that_people_have(tree):
    (tree / "test" / "b").rename(tree / "test" / "cafe\u0301")
    (tree / "train" / "b").rename(tree / "train" / "caf\u00e9")
    assert datasets.load(f"folder:{tree}")[0].classes == ("a", "caf\u00e9")
    images = tree / "train" / "a"
    images.rename(tree / "images")
    images.mkdir()
    (tree / "images").rename(images / "images")
    with pytest.raises(InputError, match="one folder deeper, in images/"):
        datasets.load(f"folder:{tree}")
    inner = tree / "cifar-10-batches-py"
    with pytest.raises(InputError, match="no such folder"):
        datasets.load("cifar10", inner)
    inner.mkdir()
    with pytest.raises(InputError, match="give the folder that cifar-10-batches-py lies in"):
        datasets.load("cifar10", inner)
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        datasets.load("CIFAR10", tree)


# arrays


def npz(file, **changed):
    parts = {"classes": np.array(["a", "b"])}
    for part, n in (("train", 40), ("test", 8)):
        parts[f"{part}_images"] = np.zeros((n, 8, 8, 3), np.uint8)
        parts[f"{part}_labels"] = np.arange(n) % 2
    np.savez_compressed(file, **(parts | changed))


def member(file, key, data):
    """Put other bytes in the place of an array."""
    with zipfile.ZipFile(file) as old:
        kept = {name: old.read(name) for name in old.namelist()} | {f"{key}.npy": data}
    with zipfile.ZipFile(file, "w") as new:
        for name, content in kept.items():
            new.writestr(name, content)


def header(shape):
    buffer = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: member(f, "train_images", header((10**6, 10**3, 10**3, 3))), "it has others"),
        (lambda f: member(f, "train_images", header((-4, 8, 8, 3))), "no plain array"),
        (lambda f: member(f, "train_images", b"hello"), "damaged, or no .npz file"),
        (lambda f: f.write_bytes(header((3,)) + b"abc"), "damaged, or no .npz file"),
        (lambda f: npz(f, classes=np.array([{}, 1], object)), "no plain array"),
        (lambda f: npz(f, train_images=np.zeros((40, 0, 0, 3), np.uint8)), "expected uint8 images"),
        (lambda f: npz(f, test_images=np.zeros((8, 4, 4, 3), np.uint8)), "test images 4x4"),
        (lambda f: f.write_bytes(f.read_bytes()[:300]), "damaged, or no .npz file"),
        (
            lambda f: npz(
                f,
                classes=np.array(["a"]),
                train_labels=np.zeros(40, int),
                test_labels=np.zeros(8, int),
            ),
            "has 1 class",
        ),
    ],
)
def test_refused_arrays(change, says, tmp_path):
    file = tmp_path / "x.npz"
    npz(file)
    change(file)
    with pytest.raises(InputError, match=says):
        datasets.load(f"npz:{file}")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_DENSE", 10**5)
    npz(tmp_path / "x.npz", train_images=np.zeros((2000, 8, 8, 3), np.uint8))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(InputError, match="would unpack to"):
        datasets.load(f"npz:{tmp_path / 'x.npz'}")


def test_labels_in_a_column(tmp_path):
    npz(tmp_path / "x.npz", train_labels=(np.arange(40) % 2)[:, None])
    assert datasets.load(f"npz:{tmp_path / 'x.npz'}")[0].y.shape == (40,)


class Runs:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_files_of_torch_are_not_unpacked_and_advice_is_not_passed_on(tmp_path):
    file = tmp_path / "attack_result.pt"
    torch.save({"a": torch.zeros(10**6)}, file)
    with zipfile.ZipFile(file) as old:
        kept = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in kept.items():
            new.writestr(name, content)
    with pytest.raises(InputError, match="in it is packed"):
        toolbox.load(file)
    file.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(InputError, match=r"no file of torch\.save") as refused:
        toolbox.load(file)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**32),
        torch.zeros(4, device="meta"),
        torch.zeros(4, 4).to_sparse(),
    ],
)
def test_tensors_that_do_not_hold_their_numbers(tensor):
    assert toolbox._plain(torch.zeros(3, 4).t()) and not toolbox._plain(tensor)


# records and suites


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"format": ' + "1" * 5000 + "}",
        '{"format": NaN}',
        '{"format": 1e400}',
        "\udcff\udcfe",
    ],
)
def test_no_json_of_ours(text, tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"x\.json: not (a record|readable as JSON)"):
        records.read(file)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("metrics", "ca"), [5, 3]),
        (("metrics", "ca"), [1.5, 3]),
        (("spec", "rate"), 0.2),
        (("spec", "seed"), "x"),
        (("surroundings", "device"), "\x1b]0;owned\x07"),
        (("time", "training"), float("inf")),
        (("curves",), {"x": ["a"]}),
        (("cell", "attack"), None),
    ],
)
def test_a_record_that_was_changed(place, value, done, tmp_path, capsys):
    folder, file = copied(done, tmp_path)
    record = json.loads(file.read_text())
    at = record
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    file.write_text(json.dumps(record))
    for command in ("table", "report"):
        assert here(command, folder) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(file) in said


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../owned"},
        {"name": ""},
        {"name": "a\0b"},
        {"name": "a" * 400},
        {"datasets": "abc"},
        {"datasets": []},
        {"attacks": [[1]]},
        {"attacks": ["bad\x1b[31mnets"]},
        {"seeds": [0.5]},
        {"rates": [float("nan")]},
        {"protocol": None},
        {"protocol": {"name": "x", "crop": -4}},
        {"protocol": {"name": "x", "reserve": 2.0}},
        {"reported": ["abcde"]},
    ],
)
def test_a_suite_of_a_stranger(change, done, tmp_path, capsys):
    folder, _ = copied(done, tmp_path)
    grid = json.loads((folder / "suite.json").read_text())
    (folder / "suite.json").write_text(json.dumps(grid | change))
    before = sorted(tmp_path.rglob("*"))
    for words in (("status", folder), ("run", folder, "--out", tmp_path / "in" / "here")):
        assert here(*words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "suite.json" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("reason", ["", "\n\n", "RuntimeError: \x1b]0;owned\x07", "[/bold]"])
def test_reasons_are_shown_as_text(reason, done, tmp_path, capsys):
    folder, file = copied(done, tmp_path)
    file.unlink()
    file.with_suffix(".failed").write_text(reason)
    assert here("status", folder) == 0
    said = capsys.readouterr().out
    assert "failed" in said and "\x1b" not in said


# states


def test_a_damaged_state_is_made_anew(tmp_path, caplog):
    """The same result as of an undisturbed training; whole states of something else count as
    damaged, too.
    """
    train = make_images(side=8)

    def trained(state, **more):
        engine = Engine(RULES, train, state=state, **more)
        net = engine.fit(engine.new_model(), train)
        return [value.clone() for value in net.state_dict().values()], engine.log_book.curves

    whole = trained(None)

    def stop(*_):
        raise KeyboardInterrupt

    for damage in (
        lambda file: os.truncate(file, 100),
        lambda file: torch.save({"done": 1, "parts": [{}, {}], "random": {}, "log": {}}, file),
        lambda file: (file.unlink(), file.mkdir()),
    ):
        state = tmp_path / "state"
        with pytest.raises(KeyboardInterrupt):
            trained(state, progress=stop)
        (file,) = state.rglob("*.pt")
        damage(file)
        again = trained(state)
        assert all(map(torch.equal, whole[0], again[0])) and whole[1] == again[1]
        assert f"{file}: damaged, made anew" in caplog.text
        files.remove(state)
        caplog.clear()


# what the system says


def test_results_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    words = ("run", "--dataset", GRID.datasets[0], "--attacks", "badnets", "--defenses", "none")
    words += ("--model", "cnn5", "--device", "cpu", "--out")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/x", "a" * 300):
        assert here(*words, out) in (1, 2)
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if "cells," not in line]) == 1
    usage = type("Usage", (), {"free": 10**5})
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda _: usage)
    assert here(*words, tmp_path / "full") == 2
    assert "0 MiB are free, the run may keep 7 MiB" in capsys.readouterr().err


def test_what_dead_writers_left_is_swept(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    own = files.unfinished(tmp_path / "a" / "x.json")
    dead = own.with_suffix(f".{gone.pid}-a1")
    theirs = own.with_name(f".x.json.elsewhere.{gone.pid}-a1")
    own.parent.mkdir()
    for file in (own, dead, theirs, tmp_path / ".hidden"):
        file.write_text("")
    files.sweep(tmp_path)
    assert own.exists() and not dead.exists() and theirs.exists()
    os.utime(theirs, (0, 0))
    files.sweep(tmp_path)
    assert not theirs.exists() and (tmp_path / ".hidden").exists()


def test_file_systems_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(InputError, match="no locks; BBX_SOFT_LOCKS=1 has files"),
        files.locked(tmp_path / "x"),
    ):
        pass
    monkeypatch.setenv("BBX_SOFT_LOCKS", "1")
    with files.locked(tmp_path / "x"):
        assert (tmp_path / "x.softlock").exists()
    assert not (tmp_path / "x.softlock").exists()
    (tmp_path / "y.lock").mkdir()
    with (
        pytest.raises(InputError, match=r"y\.lock: cannot be locked"),
        files.locked(tmp_path / "y"),
    ):
        pass


def test_cores_are_those_that_a_scheduler_gives(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 6})
    assert devices.cores() <= 3


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_in_a_line(number, tmp_path):
    words = [sys.executable, "-m", "backdoorbench_ext", "run", "--dataset", "digits"]
    words += ["--attacks", "badnets,blend", "--defenses", "none", "--device", "cpu", "--jobs", "2"]
    run = subprocess.Popen(
        [*words, "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # what runs in the background ignores it, and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 100
    while not list(tmp_path.rglob("*.lock")) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(run.pid, number)
    said = run.communicate(timeout=60)[1].splitlines()
    assert run.returncode == 128 + number
    assert said[-1].startswith(f"bbx: stopped by {number.name}; the same command goes on")
    assert len(said) == 2


def test_a_signal_that_an_import_swallows_is_no_failure(tmp_path, monkeypatch):
    """A compiled module that is being imported makes an ImportError of what the signal raises: the
    cell has not failed, it was stopped.
    """
    grid = GRID.changed(epochs=1)

    def swallowed(*_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except signals.Stopped as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(work, "run_cell", swallowed)
    job = work.Work(tmp_path, Options(out=tmp_path, device="cpu"))
    with pytest.raises(signals.Stopped), signals.heeding():
        job.run(grid.cells()[:1], lambda *_: None)
    assert not list(tmp_path.rglob("*.failed"))
    # where no signal came it is one
    monkeypatch.setattr(work, "run_cell", lambda *_: int("x"))
    with signals.heeding():
        (outcome,) = job.run(grid.cells()[:1], lambda *_: None)
    assert "invalid literal" in outcome.error and list(tmp_path.rglob("*.failed"))


# text is data


def test_names_are_parts_of_paths():
    for text in ("..", ".", "a\0b", "a" * 400, "é" * 200, "folder:/a_b/c", "\udce9", "x\ny"):
        name = suite.file_name(text)
        assert len(name.encode()) <= 255 and name.isprintable()
        assert "/" not in name and name.strip(".")
    assert suite.file_name("folder:a/b") != suite.file_name("folder:a_b")
    assert suite.file_name("cifar10[train=0.1]") == "cifar10[train=0.1]"
    made = export.folder_names(["crane", "Crane", "a/b", "a_b", "..", "", ".git", "x" * 400])
    assert len({name.casefold() for name in made}) == 8
    assert all(name and name[0] != "." and "/" not in name for name in made)


def test_paths_with_commas_and_brackets(tree, tmp_path, capsys):
    odd = tmp_path / "a b[c],d"
    tree.rename(odd)
    text = f"folder:'{odd}'[train=0.5]"
    assert registry.split(f"{text},digits") == [text, "digits"]
    name, options = registry.parse(text)
    assert name == f"folder:{odd}" and options == {"train": 0.5}
    assert registry.join(name, options) == text
    assert len(datasets.load(text)[0]) == 4
    assert here("poison", "--attack", "badnets", "--dataset", f"folder:{odd}", "--to", "x") == 2
    assert "goes in quotes" in capsys.readouterr().err


def test_class_names_write_nowhere_else(tmp_path):
    classes = np.array(["..", "/etc"])
    npz(tmp_path / "x.npz", classes=classes)
    words = ("poison", "--attack", "badnets", "--dataset", f"npz:{tmp_path / 'x.npz'}")
    assert here(*words, "--to", tmp_path / "in" / "made", "--out", tmp_path / "in") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "in"}
    assert len(datasets.load(f"folder:{tmp_path / 'in' / 'made'}")[0].classes) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8(tree, tmp_path, capsys):
    odd = os.fsdecode(b"caf\xe9")
    for part in ("train", "test"):
        (tree / part / "b").rename(tree / part / odd)
    words = ("--dataset", f"folder:{tree.rename(tmp_path / odd)}", "--attack", "badnets")
    assert here("poison", *words, "--to", tmp_path / f"to{odd}", "--out", tmp_path) == 0
    grid = replace(GRID, datasets=(words[1],), protocol=replace(RULES, reserve=0.0))
    plan = runner.plan(
        grid.changed(epochs=1), grid.changed(epochs=1).cells(), Options(out=tmp_path)
    )
    (outcome,) = runner.run(plan, jobs=1)
    assert outcome.record, outcome.error
    assert here("table", plan.folder) == 0 and here("plot", plan.folder, "--format", "png") == 0
    assert "caf\\xe9" in capsys.readouterr().out.replace("\\udce9", "\\xe9")


def test_text_in_latex_and_plots(done, tmp_path):
    (record,) = records.read_all(done)
    name = "50% of a#b"
    grid = replace(GRID.changed(epochs=1), name=name, datasets=("folder:数据 $x^$ <é>",))
    record = record | {"cell": record["cell"] | {"dataset": grid.datasets[0]}}
    text = tables.render([record], grid, "latex")
    assert r"\label{tab:50--of-a-b}" in text
    assert r"folder:\texttt{U+6570}\texttt{U+636E} \$x\textasciicircum{}\$ \textless{}é" in text
    assert "&lt;é>" in tables.render([record], grid, "markdown")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (file,) = plots.save(plots.bars([record], grid), tmp_path / "plot", ("png",))
    assert reading.whole_png(file)


def test_a_terminal_without_arrows(done, monkeypatch):
    bare = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", bare)
    assert here("table", done) == 0
    bare.flush()
    assert b"\\u2191" in bare.buffer.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ("plot", "a" * 5000),
        ("show", "cbd\x1b]0;owned\x07"),
        ("run", "demo", "--defenses", "x"),
        ("run", "--dataset", "digits", "--attacks", "badnets", "--defenses", "cbd[beta={[]:1}]"),
        (
            "run",
            "--dataset",
            "digits",
            "--attacks",
            "badnets",
            "--defenses",
            "cbd[t1=" + "9" * 5000,
        ),
        (
            "run",
            *("--dataset", "digits", "--attacks", "badnets"),
            *("--defenses", f"cbd[beta={'-' * 9000}1]"),
        ),
        ("run", "--dataset", "folder:~nobody/x", "--attacks", "badnets", "--defenses", "none"),
        ("run", "--dataset", "npz:a\nb", "--attacks", "badnets", "--defenses", "none"),
        ("run", "demo", "--epochs", "9" * 30),
        ("run", "demo", "--target", "-1"),
        ("table", "/dev/null"),
        ("list", "--plugin", "/proc/self/mem"),
    ],
)
def test_what_is_no_name_of_ours_is_a_line(words, capsys):
    assert here(*words) in (1, 2)
    said = capsys.readouterr().err
    own = [line for line in said.splitlines() if "cells," not in line]
    assert len(own) == 1 and len(own[0]) < 2000 and "\x1b" not in said


@pytest.mark.parametrize(
    "text", ["raise SystemExit(0)", "raise KeyboardInterrupt", "raise RuntimeError('a\\nb')"]
)
def test_a_plugin_may_do_anything(text, tmp_path, capsys):
    (tmp_path / "p.py").write_text(text)
    assert here("list", "--plugin", tmp_path / "p.py") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_one_line():
    assert one_line("a\n  b\x1b[31m\udce9") == "a b\\x1b[31m\\udce9"
    assert len(one_line("x" * 10**5)) < 2000


def test_networks_are_tried_before_the_first_epoch():
    """One whose classifier has a hidden layer before it; two heads; images that are too small."""
    models.check_use("mobilenetv3_small_050", 3, 32, 32)
    with pytest.raises(InputError, match="levit_128s cannot be used on images of 32x32"):
        models.check_use("levit_128s", 3, 32, 32)
    with pytest.raises(InputError, match="Kernel size can't be greater"):
        models.check_use("inception_v3", 3, 32, 32)


def test_networks_are_tried_backward(monkeypatch):
    """One that answers, and cannot be trained."""
    forward = models.Net.features

    def features(self, x):
        z = forward(self, x)
        return z.detach() if self.training else z

    monkeypatch.setattr(models.Net, "features", features)
    monkeypatch.setattr(models.Net, "head", lambda self, z: z @ z.new_ones(z.shape[1], 3) / 7)
    monkeypatch.setattr(models, "_check_embedding", lambda net, x: net(x))
    with pytest.raises(InputError, match=r"resnet10t cannot be used .* does not require grad"):
        models.check_use("resnet10t", 3, 40, 32)


@pytest.mark.parametrize("name", ["wrn16_1", "torchvision:regnet_x_400mf"])
def test_the_size_of_a_network_that_is_not_built(name):
    built = models.Net(name, 10).state_dict().values()
    assert models.size(name) == sum(tensor.numel() for tensor in built)


# two at once


def test_own_grids_lose_nothing_of_each_other(tmp_path):
    """Both were planned before either was saved."""
    for attack in ("badnets", "blend"):
        replace(GRID, attacks=(attack,)).save(tmp_path, suite.AXES)
    assert suite.load(str(tmp_path)).attacks == ("badnets", "blend")


def test_a_folder_that_another_has_written_meanwhile(tmp_path):
    made = tmp_path / "made"
    with pytest.raises(InputError, match="exists already"), files.whole_folder(made) as part:
        (part / "x").write_text("ours")
        made.mkdir()
        (made / "x").write_text("theirs")
    with pytest.raises(OSError) as full, files.whole_folder(tmp_path / "other"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert full.value.filename == str(tmp_path / "other")
    assert (made / "x").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]

"""The way from a suite to records and tables: run, kill, go on, fail, refuse."""

import errno
import io
import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import IDLE, RULES, here
from PIL import Image
from rich.console import Console
from test_registry import DEFENSE

from backdoorbench_ext import (
    cost,
    datasets,
    lab,
    layout,
    progress,
    records,
    registry,
    runner,
    suite,
    surroundings,
    tables,
    tune,
    work,
)
from backdoorbench_ext.attacks.blend import picture
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.progress import bars
from backdoorbench_ext.suite import Suite

SUITE = '''
"""A grid for the tests."""
from dataclasses import replace
from backdoorbench_ext.protocols import CBD, Recipe
from backdoorbench_ext.suite import Suite

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.01, schedule="one-cycle")
SUITE = Suite(
    "tiny",
    replace(CBD, name="tiny", model="cnn5", recipe=RECIPE, overrides={}),
    ("digits[train=200,test=50]",),
    ("badnets",),
    ("none", "cbd[t1_steps=15]", "mcci[images=4]", "mcci[images=4,inference=sg]"),
)
'''


@pytest.fixture
def grid():
    return Suite(
        "grid",
        replace(RULES, recipe=replace(RULES.recipe, epochs=1)),
        ("digits[train=200,test=20]",),
        ("badnets",),
        ("none", "cbd[t1_steps=1]"),
    )


def bbx(*words, cwd, check=None):
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "backdoorbench_ext", *map(str, words)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check is None or done.returncode == check, done.stderr
    return done


def timeless(path):
    record = json.loads(path.read_text())
    return {key: value for key, value in record.items() if key not in ("time", "surroundings")}


def test_run_writes_each_record_once(grid, tmp_path):
    options = Options(out=tmp_path, device="cpu")
    cells = grid.cells()
    assert all(outcome.record for outcome in runner.run(runner.plan(grid, cells, options), jobs=1))
    files = sorted((tmp_path / "grid").rglob("rate*.json"))
    assert len(files) == 2 and runner.plan(grid, cells, options).done == cells
    before = [file.stat().st_mtime_ns for file in files]
    assert runner.run(runner.plan(grid, cells, options), jobs=1) == []
    assert [file.stat().st_mtime_ns for file in files] == before
    record = records.read(files[0])
    assert record["given"] == {
        "train_images": 190,
        "poisoned": 19,
        "cover": 0,
        "clean_images": 0,
    }, "5 % of each class held out"
    assert record["metrics"]["ca"][1] == 20 and record["metrics"]["asr"][1] == 18
    assert (
        set(record["probes"]) == {"f_B"}
        and record["surroundings"]["versions"]["torch"] == torch.__version__
    )
    assert (
        record["spec"]["protocol"]["recipe"]["epochs"] == 1
        and record["spec"]["defense"]["beta"] == 1e-4
    )
    assert not list((tmp_path / "grid" / ".state").glob("*/*.pt")), (
        "the state of finished trainings is taken away"
    )
    assert suite.load(str(tmp_path / "grid")).cells() == cells, "known to who asks while it runs"


def test_cells_that_benchmarks_share_run_once(grid, tmp_path, monkeypatch):
    """A record of another folder, made by the same code on the same device, is copied, under the
    name that the method has here.
    """
    options = Options(out=tmp_path, device="cpu")
    monkeypatch.setattr(surroundings, "commit", lambda: "abc")
    runner.run(runner.plan(grid, grid.cells(), options), jobs=1)
    other = replace(grid, name="other", defenses=("cbd[t1_steps=1,beta=1e-4]", "none"))
    cells = other.cells()

    def elsewhere(cells, options=options):
        return runner.plan(replace(grid, name="new"), cells, options).taken

    found = elsewhere(cells)
    assert [cell for cell, _ in found] == cells and {file.parts[-5] for _, file in found} == {
        "grid"
    }
    assert elsewhere(cells, replace(options, audit=True)) == []
    assert elsewhere(other.changed(seeds=(1,)).cells()) == []
    assert elsewhere(cells, replace(options, plugins=(Path("mine.py"),))) == []
    for changed in ("abd", "abc+", ""):
        with monkeypatch.context() as patch:
            patch.setattr(surroundings, "commit", lambda commit=changed: commit)
            assert elsewhere(cells) == [], "other code"
    with monkeypatch.context() as patch:
        here = runner.has_bf16(torch.device("cpu"))
        patch.setattr(runner, "has_bf16", lambda _: not here)
        assert elsewhere(cells) == [], "another precision"
    with monkeypatch.context() as patch:
        patch.setattr(work, "run_cell", lambda *_, **__: pytest.fail("trained again"))
        assert runner.run(runner.plan(other, cells, options), jobs=1) == []
        assert runner.plan(other, cells, options).done == cells
    copy, first = (
        records.read(tmp_path / one.name / one.cells("cbd")[0].path) for one in (other, grid)
    )
    assert (
        copy["cell"]["defense"] == "cbd[t1_steps=1,beta=1e-4]"
        and copy | {"cell": first["cell"]} == first
    )
    assert (tmp_path / "other" / cells[0].path).parent.with_name("examples.png").exists()
    next(iter(found))[1].write_text("{")
    third = replace(grid, name="third", defenses=("cbd[t1_steps=1]",)).cells()
    assert [file.parts[-5] for _, file in elsewhere(third)] == ["other"], (
        "a damaged record is none, and hides none"
    )


def test_a_later_run_adds_to_the_tables_of_an_earlier_one(tmp_path, capsys):
    """A grid of one's own on all axes, a benchmark's other seeds; under another protocol it is
    another grid.
    """

    def bbx(*words):
        assert here(*words, "--out", tmp_path) == 0
        return capsys.readouterr().out

    own = (
        "run",
        "--dataset",
        "digits[train=200,test=20]",
        "--model",
        "bbx_test",
        "--epochs",
        1,
        "--jobs",
        1,
        "--device",
        "cpu",
    )
    bbx(*own, "--attacks", "badnets", "--defenses", "none")
    bbx(*own, "--attacks", "blend", "--defenses", "none", "--seeds", 1)
    bbx(*own, "--attacks", "blend", "--defenses", "none", "--protocol", "mcci")
    assert sorted(folder.name for folder in tmp_path.glob("own*")) == [
        "own-epochs1-bbx_test",
        "own-mcci-epochs1-bbx_test",
    ]
    table = pd.read_csv(io.StringIO(bbx("table", "own-epochs1-bbx_test", "--format", "csv")))
    assert list(zip(table.attack, table.seed, strict=True)) == [("badnets", 0), ("blend", 1)]
    grid = suite.load("demo")
    replace(grid, seeds=(1, 2)).save(tmp_path / "demo")
    cells = json.loads(bbx("status", "demo", "--json"))
    assert len(cells) == 3 * len(grid.cells()) and any("seed2" in cell["cell"] for cell in cells)


@pytest.mark.parametrize(
    ("defenses", "long"),
    [("none,fp,abl,cbd[variant=release]", "abl, cbd[variant=release]"), ("cbd[t1_steps=9]", "")],
)
def test_lengths_under_fast_are_told(defenses, long, capsys):
    """A method's default is for a hundred epochs; the reserve's are the same under ``fast``."""
    rules = ("--protocol", "fast", "--dataset", "digits")
    grid = ("--attacks", "badnets", "--defenses", defenses)
    assert here("run", *rules, *grid, "--only", "nothing") == 2
    said = capsys.readouterr().err
    assert ("lengths of a hundred epochs" in said) == bool(long)
    assert long in said
    # one fold is too few: nothing trains
    assert here("tune", registry.split(defenses)[-1], *rules, "--folds", 1) == 2
    said = capsys.readouterr().err
    assert ("lengths of a hundred epochs" in said) == bool(long)


def test_a_picture_that_changed_behind_its_name(grid, tmp_path):
    """The network trained on the old picture's images is no victim of the new one's, and the table
    says that its cells are not of a kind.
    """

    def paint(value):
        picture.cache_clear()
        Image.new("RGB", (32, 32), (value, 0, 0)).save(tmp_path / "pattern.png")

    suite = replace(
        grid, attacks=(f"blend[pattern={tmp_path}/pattern.png]",), defenses=("none", "fp[epochs=1]")
    )
    options = Options(out=tmp_path / "out", device="cpu")
    found = []
    for value, only in ((0, "none/rate"), (0, "fp"), (255, "fp")):
        paint(value)
        for cell in suite.cells(only):
            (tmp_path / "out" / "grid" / cell.path).unlink(missing_ok=True)
        found.append(runner.run(runner.plan(suite, suite.cells(only), options), jobs=1)[0].record)
        victims = list((tmp_path / "out" / ".shared").glob("victim-*.safetensors"))
        assert len(victims) == (2 if value else 1)
        assert (
            "same poisoned images"
            in layout.caption([found[0], found[-1]], suite, tables.USUAL_STYLE)
        ) == bool(value)
    assert (
        found[0]["surroundings"]["poison"]
        == found[1]["surroundings"]["poison"]
        != found[2]["surroundings"]["poison"]
    )


def test_images_that_changed_behind_their_name(grid, tmp_path):
    """Refused, both to go on with and to write tables of; where the file is away, tables of
    finished records can still be written.
    """

    def run(only):
        # a process reads a file once
        for cached in (lab.load, lab._data_digest):
            cached.cache_clear()
        return runner.run(
            runner.plan(own, own.cells(only), Options(out=tmp_path / "out", device="cpu")),
            jobs=1,
        )

    train, test = datasets.load("digits[train=200,test=20]")
    file = tmp_path / "own.npz"

    def write(y):
        x = {
            "train_images": train.x.permute(0, 2, 3, 1).numpy(),
            "test_images": test.x.permute(0, 2, 3, 1).numpy(),
        }
        np.savez(
            file,
            **x,
            train_labels=y.numpy(),
            test_labels=test.y.numpy(),
            classes=np.array(train.classes),
        )

    def victim_file(own):
        there = Lab(own.cells()[0], options)
        assert there.poison_digest == poison or there.victim_file != victim
        return there.victim_file

    own = replace(grid, datasets=(f"npz:{file}",))
    write(train.y)
    options = Options(out=tmp_path / "out", device="cpu")
    made = run("none/rate")[0].record
    victim = next((tmp_path / "out" / ".shared").glob("victim-*.safetensors"))
    poison = made["surroundings"]["poison"]
    assert made["surroundings"]["data"] == datasets.digest((train, test)) and victim == victim_file(
        own
    )
    assert run("none/rate") == []
    write(train.y.roll(1))
    for only in ("none/rate", "cbd"):
        with pytest.raises(InputError, match="are not those that the records in"):
            run(only)
    assert victim_file(own) != victim, "nor is a network of other images a victim"
    other = replace(own, name="other")
    assert runner.plan(other, other.cells(), options).taken == []
    file.unlink()
    assert run("none/rate") == []
    with pytest.raises(InputError, match="no such file"):
        run("cbd")


def test_progress_where_no_bars_can_be_drawn(grid, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    console = Console(file=io.StringIO())
    runner.run(
        runner.plan(grid, grid.cells("none/rate"), Options(out=tmp_path, device="cpu")),
        jobs=1,
        console=console,
    )
    assert (
        "digits[train=200,test=20] badnets none rate 0.1 seed 0: train, epochs 1/1\n"
        in console.file.getvalue()
    )


def test_long_work_between_trainings_is_told():
    told = []
    engine = Engine(
        RULES,
        datasets.load("digits[train=20,test=10]")[0],
        progress=lambda *news: told.append(news),
    )
    for step in engine.track(range(5), "steps"):
        if step == 1:
            break
    assert told == [("steps", 0, 5), ("steps", 1, 5), ("steps", 5, 5)], (
        "a bar that is left early goes, too"
    )


def test_a_killed_fold_goes_on(grid, tmp_path, monkeypatch):
    cell = grid.changed(epochs=2).cells("none/rate")[0]
    told = []
    whole = tune.cross_validate(cell, ["none"], 2, Options(out=tmp_path / "whole", device="cpu"))

    def kill(whose, what, done, total):
        told.append((whose, what, done))
        # the folds, and an epoch of the first
        if len(told) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tune, "bars", lambda *_: nullcontext(kill))
    options = Options(out=tmp_path / "killed", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        tune.cross_validate(cell, ["none"], 2, options)
    assert tune.cross_validate(cell, ["none"], 2, options) == whole
    assert [(what, done) for whose, what, done in told if whose == "none, fold 1 of 2"] == [
        ("train, epochs", 1),
        ("train, epochs", 2),
    ]


def test_a_changed_option_is_another_cell(grid):
    paths = {
        replace(cell, defense=text).path
        for cell in grid.cells()
        for text in ("cbd", "cbd[beta=1e-3]", "cbd[beta=1e-4]")
    }
    assert len({path.name for path in paths}) == 2, (
        "defaults are written out: beta=1e-4 is the default"
    )
    assert grid.changed(epochs=2).cells()[0].path != grid.cells()[0].path
    assert grid.changed(epochs=2).name == "grid-epochs2"


def test_a_failed_cell_leaves_its_reason_and_is_tried_again(grid, tmp_path, monkeypatch):
    options = Options(out=tmp_path, device="cpu")

    def broken(*_, **__):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr("backdoorbench_ext.engine.Engine.fit", broken)
        outcomes = runner.run(runner.plan(grid, grid.cells("none"), options), jobs=1)
    assert [(o.record, o.error) for o in outcomes] == [(None, "RuntimeError: out of luck")]
    failed = list(tmp_path.rglob("*.failed"))
    assert len(failed) == 1 and "out of luck" in failed[0].read_text()
    assert runner.run(runner.plan(grid, grid.cells("none"), options), jobs=1)[0].record
    assert not list(tmp_path.rglob("*.failed"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"attacks": ("badnets[size=40]",)}, "do not fit into 32x32"),
        (
            {"defenses": ("mcci",)},
            r"needs 100 clean images, but the protocol's reserve \(5 % .*\) holds",
        ),
        ({"rates": (1.2,)}, "poisoning rate must lie"),
        ({"defenses": ("cbdd",)}, "Did you mean 'cbd'"),
        ({"protocol": replace(RULES, model="resnet81")}, "Did you mean"),
        ({"protocol": replace(RULES, target=10)}, "target 10 is no class"),
    ],
)
def test_what_cannot_work_is_said_before_training(grid, tmp_path, changed, says, monkeypatch):
    monkeypatch.setattr(
        "backdoorbench_ext.engine.Engine.fit",
        lambda *_, **__: pytest.fail("nothing may be trained"),
    )
    bad = replace(grid, **changed)
    with pytest.raises(InputError, match=says):
        runner.run(runner.plan(bad, bad.cells(), Options(out=tmp_path, device="cpu")), jobs=1)


@contextmanager
def started(*words, cwd):
    """A command in a process of its own, which ends with this however it ends."""
    command = [sys.executable, "-m", "backdoorbench_ext", *map(str, words)]
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def files(folder, ending):
    """Those below a folder in which another process makes and removes folders meanwhile."""
    return {
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(ending)
    }


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """SIGKILL, again and again, until the grid is done: the records are those of an undisturbed
    run, but for the times.
    """
    file = tmp_path / "tiny.py"
    file.write_text(SUITE)
    assert here("run", file, "--device", "cpu", "--jobs", 1, "--out", tmp_path / "whole") == 0
    rng = random.Random(0)
    kills = 0
    for _ in range(4):
        with started(
            "run", file, "--device", "cpu", "--jobs", 1, "--out", "torn", cwd=tmp_path
        ) as process:
            until = time.monotonic() + 60
            seen = set()
            # let it write something, then kill it at any moment after
            while process.poll() is None and time.monotonic() < until:
                now = {
                    file
                    for file in files(tmp_path / "torn", (".pt", ".json"))
                    if file.suffix == ".pt" or file.name.startswith("rate")
                }
                if now - seen and (seen or rng.random() < 0.5):
                    break
                seen |= now
                time.sleep(0.05)
            time.sleep(rng.random() / 4)
            kills += process.poll() is None
    assert kills >= 2
    assert here("run", file, "--device", "cpu", "--jobs", 1, "--out", tmp_path / "torn") == 0
    whole, torn = (sorted((tmp_path / folder).rglob("rate*.json")) for folder in ("whole", "torn"))
    assert [p.relative_to(tmp_path / "whole") for p in whole] == [
        p.relative_to(tmp_path / "torn") for p in torn
    ] and len(whole) == 4
    assert [timeless(p) for p in whole] == [timeless(p) for p in torn]


def descendants(pid):
    """Processes below one, by /proc."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [below for child in own for below in descendants(child)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_nothing_lives_on_after_a_kill(tmp_path):
    (tmp_path / "tiny.py").write_text(SUITE)
    until = time.monotonic() + 60
    with started("run", "tiny.py", "--device", "cpu", "--jobs", 2, cwd=tmp_path) as process:
        while not files(tmp_path / "runs", ".pt") and time.monotonic() < until:
            time.sleep(0.05)
        below = descendants(process.pid)
    assert len(below) >= 2, "two workers"
    # anew: a busy machine may have needed most of it to start
    until = time.monotonic() + 60
    while any(map(alive, below)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in below if alive(pid)]


def test_a_dropped_file_is_a_defense(tmp_path, capsys, monkeypatch):
    """One file in defenses/, no other edit: it is listed, run, and walked by the contract tests;
    and the same by --plugin.
    """
    monkeypatch.setattr(registry, "_plugins", {})
    root = Path(registry.__file__).parents[1]
    if not (root / "setup.cfg").exists():
        pytest.skip("not a checkout: nowhere to drop a file")
    grid = (
        "--dataset",
        "digits[train=100,test=20]",
        "--attacks",
        "badnets",
        "--defenses",
        "smoothing",
        "--epochs",
        1,
        "--model",
        "cnn5",
        "--device",
        "cpu",
    )
    plugin = tmp_path / "smoothing.py"
    plugin.write_text(DEFENSE)
    assert here("run", *grid, "--plugin", plugin, "--jobs", 2, "--out", tmp_path / "runs") == 0
    assert "smoothing" in capsys.readouterr().out
    assert len(list(tmp_path.glob("runs/own-*/digits*/badnets/smoothing/*.json"))) == 1

    package = tmp_path / "checkout"
    for folder in (
        "backdoorbench_ext",
        "backdoorbench_ext/cli",
        "backdoorbench_ext/toolbox",
        "attacks",
        "defenses",
        "benchmarks",
        "tests",
    ):
        (package / folder).mkdir(parents=True)
        for source in (root / folder).glob("*.py"):
            (package / folder / source.name).write_text(source.read_text())
    for folder in ("attacks", "defenses", "benchmarks"):
        (package / "backdoorbench_ext" / folder).symlink_to(f"../{folder}")
    (package / "setup.cfg").write_text((root / "setup.cfg").read_text())
    (package / "defenses" / "smoothing.py").write_text(DEFENSE)
    assert "smoothing" in bbx("list", "defenses", cwd=package, check=0).stdout
    done = bbx("run", *grid, "--jobs", 1, cwd=package, check=0)
    assert "smoothing" in done.stdout
    assert len(list(package.glob("runs/own-*/digits*/badnets/smoothing/*.json"))) == 1
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/test_methods.py",
        "-k",
        "smoothing",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        words,
        cwd=package,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "dmeo"], "Did you mean 'demo'"),
        (["run"], "give either a benchmark"),
        (["run", "demo", "--dataset", "digits"], "give either a benchmark"),
        (["run", "demo", "--only", "wanet"], "no cell of demo has 'wanet'"),
        (["run", "demo", "--only", "blend | wanet"], "no cell of demo has 'wanet'"),
        (["run", "demo", "--only", "blend |"], "no cell of demo has ''"),
        (["run", "demo", "--epochs", "0"], "epochs must be at least 1"),
        (["run", "demo", "--seeds", "a"], "--seeds must be numbers"),
        (["run", "demo", "--device", "cuda:9"], "device 'cuda:9' cannot be used"),
        (["run", "demo", "--plugin", "none.py"], "no such file"),
        (["run", "--dataset", "digits", "--attacks", "badnets"], "needs --attacks and --defenses"),
        (
            ["run", "--dataset", "cifar10", "--attacks", "badnets", "--defenses", "none"],
            "cifar10 needs --data DIR",
        ),
        (["table", "demo", "--out", "nowhere"], "no records of demo yet: bbx run demo"),
        (["show", "cbdd"], "Did you mean 'cbd'"),
        (["list", "attack"], "Did you mean 'attacks'"),
    ],
)
def test_bad_commands(words, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert here(*words) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_read_commands(capsys, monkeypatch, tmp_path, grid):
    """list, show, status, table, plot, doctor on a small grid, also from its folder alone."""
    runner.run(runner.plan(grid, grid.cells(), Options(out=tmp_path, device="cpu")), jobs=1)
    grid.save(tmp_path / "grid")
    assert suite.load(str(tmp_path / "grid")) == grid

    def run(*words):
        assert here(*words) == 0
        return capsys.readouterr().out

    assert (
        "badnets" in run("list", "attacks")
        and "cbd" in json.loads(run("list", "--json"))["defenses"]
    )
    assert (
        "Deconfounded" in run("show", "cbd")
        and "cells" in run("show", "demo")
        and "CBD v2" in run("show", "cbd")
    )
    assert [row["state"] for row in json.loads(run("status", tmp_path / "grid", "--json"))] == [
        "done",
        "done",
    ]
    assert r"\toprule" in run("table", tmp_path / "grid", "--format", "latex")
    assert (
        "plot.svg" in run("plot", tmp_path / "grid", "--format", "svg")
        and (tmp_path / "grid" / "plot.svg").stat().st_size > 5000
    )
    assert torch.__version__ in run("doctor")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable as JSON"),
        ("{}", "not a record"),
        ("[1]", "not readable as JSON"),
        ('{"format": 99}', "record format 99, this version reads up to 2"),
        ('{"format": 1, "metrics": {"ca": [5, 3]}}', "not a record"),
    ],
)
def test_damaged_records(text, says, tmp_path):
    file = tmp_path / "rate0.1-seed0-x.json"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"x\.json: {says}"):
        records.read(file)


def test_cost_counts_stages():
    """Whole lengths are reckoned from a few steps: 10 epochs of 8 steps beside 2 of 60 are 80 / 60
    plain ones where a step costs the same.
    """
    stages = cost.cost(registry.create("defenses", "fp"), RULES, n=1024, classes=8, side=8)
    assert (
        list(stages) == ["victim", "passes", "fine-tuning"]
        and stages["victim"] == RULES.recipe.epochs
    )
    steps = 10 * (8 * round(0.05 * 128) // 16) / (1024 * 0.95 // 16)
    assert 0.3 * steps < stages["fine-tuning"] < 3 * steps and 0 < stages["passes"] < 1
    stages = cost.cost(
        registry.create("defenses", "asd[seeds=1,steps=4,first=2,second=0,third=0]"),
        RULES,
        n=256,
        classes=8,
        side=8,
    )
    assert sorted(stages) == ["MixMatch", "passes"] and stages["MixMatch"] > 0


def test_tune_by_cross_validation(tmp_path, grid, monkeypatch):
    """Folds share no image and leave none out; what is finished is kept; the best is the highest
    mean.
    """
    names = tune.choices("cbd[t1_steps=1]", {"beta": [1e-5, 1e-3]})
    assert names == ["cbd[t1_steps=1,beta=1e-05]", "cbd[t1_steps=1,beta=0.001]"]
    assert len(whole := tune.choices("cbd", {})) == 9, "the paper's own grid"
    few = tune.choices("cbd", {}, trials=4, seed=1)
    assert len(set(few)) == 4 and set(few) < set(whole)
    assert few == tune.choices("cbd", {}, 4, 1) != tune.choices("cbd", {}, 4, 2)
    assert tune.choices("cbd", {}, trials=20) == whole
    seen = []

    def predict(self, net, images):
        # CBD asks about the images it was trained on, too
        if len(images) < 100:
            seen.append(images.x)
        return torch.eye(10)[(images.y + len(seen) % 2) % 10]

    monkeypatch.setattr(tune.Engine, "predict", predict)
    options = Options(out=tmp_path, device="cpu")
    results = tune.cross_validate(grid.cells()[0], names, 4, options)
    assert sum(map(len, seen[:4])) == len(torch.cat(seen[:4]).flatten(1).unique(dim=0)) == 190
    assert (
        results[names[0]] == [0, 1, 0, 1] and tune.best({"a": [0.5, 0.7], "b": [0.9, 0.4]}) == "b"
    )
    assert tune.cross_validate(grid.cells()[0], names, 4, options) == results and len(seen) == 8, (
        "nothing is trained twice"
    )
    assert len(list((tmp_path / "tune").glob("[!.]*.json"))) == len(names) == 2
    assert not list((tmp_path / "tune").glob("*.fold*")), "of finished folds"
    # what was chosen holds whatever the attack, and for this alone
    chosen = tune.best(results)
    cell = replace(grid.cells()[0], attack="blend", defense=chosen)
    how = tune.tuned(tmp_path, cell)
    assert how and (how["defense"], how["trials"], how["folds"]) == (chosen, 2, 4)
    assert how["attack"] == grid.cells()[0].attack and how["seconds"] >= 0
    assert tune.tuned(tmp_path, replace(cell, defense="cbd")) is None
    assert tune.tuned(tmp_path, replace(cell, dataset="digits")) is None
    # a training that is over must not fail for it
    (kept,) = (tmp_path / "tune" / "chosen").glob("*.json")
    kept.write_text("{}")
    assert tune.tuned(tmp_path, cell) is None and not kept.exists()
    for call, says in (
        (lambda: tune.choices("none", {}), "names no options to tune"),
        (lambda: tune.choices("cbd", {"beta": [-1]}), "beta must lie in"),
        (
            lambda: tune.cross_validate(grid.cells()[0], names, 1, options),
            r"folds must lie in \[2, 190\], not 1",
        ),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_no_defense_comes_first_and_attacks_alternate():
    grid = Suite(
        "order",
        RULES,
        ("digits", "digits[train=100]"),
        ("badnets", "blend"),
        ("fp", "none", "mcci", "mcci[inference=sg]"),
    )
    found = {
        only: [(c.attack, c.defense) for c in grid.cells(only)]
        for only in ("100] blend/fp", "100] blend /fp | 100] badnets /none")
    }
    assert list(found.values()) == [[("blend", "fp")], [("badnets", "none"), ("blend", "fp")]], (
        "the words of --only"
    )
    first = runner.groups(grid.cells())[:6]
    assert [(group[0].attack, group[0].defense) for group in first] == [
        (a, d) for d in ("none", "fp", "mcci") for a in ("badnets", "blend")
    ]
    assert [len(group) for group in first] == [1, 1, 1, 1, 2, 2] and {
        group[0].dataset for group in first
    } == {"digits"}


def test_an_audit_logs_losses_by_poison_and_changes_nothing_else(grid, tmp_path):
    records = []
    for audit in (False, True):
        options = Options(out=tmp_path / str(audit), device="cpu", audit=audit)
        runner.run(runner.plan(grid, grid.cells(), options), jobs=1)
        records.append(
            {cell.defense: timeless(options.out / "grid" / cell.path) for cell in grid.cells()}
        )
    for defense, stages in (("none", ("train",)), ("cbd[t1_steps=1]", ("f_B", "f_C"))):
        curves = records[1][defense]["curves"]
        extra = {name: curves.pop(name) for name in list(curves) if ", " in name}
        assert set(extra) == {
            f"{stage}, {what}"
            for stage in stages
            for what in ("clean loss", "poisoned loss", "CA", "ASR", "ARR")
        }
        assert all(
            len(values) == len(curves[f"{name.partition(',')[0]} loss"])
            for name, values in extra.items()
        )
        assert records[0][defense] == records[1][defense]
        for metric, (hits, n) in records[1][defense]["metrics"].items():
            assert extra[f"{stages[-1]}, {metric.upper()}"][-1] == pytest.approx(100 * hits / n), (
                "all test images are fewer than 1,000"
            )


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    """Which file and why; no half-written file is left."""
    (tmp_path / "tiny.py").write_text(SUITE)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = ("run", tmp_path / "tiny.py", "--device", "cpu", "--jobs", 1, "--out", tmp_path / "out")
    assert here(*words) == 1
    said = capsys.readouterr().err
    assert f"suite.json: {os.strerror(errno.ENOSPC)}" in said and "Traceback" not in said
    left = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert [file.name for file in left if file.suffix != ".lock"] == []


def test_a_run_after_one_with_a_plugin(tmp_path, capsys, monkeypatch):
    """What a plugin made stays in the grid's tables when it is not at hand any more."""
    monkeypatch.setattr(registry, "_plugins", {})
    file = tmp_path / "idle.py"
    file.write_text(IDLE)
    words = ("run", "--dataset", "digits[train=200,test=60]", "--attacks", "badnets")
    words += ("--name", "mine", "--model", "bbx_test", "--epochs", 1, "--device", "cpu")
    words += ("--out", tmp_path, "--jobs", 1)
    assert here(*words, "--defenses", "none,idle", "--plugin", file) == 0
    registry._plugins.clear()
    assert here(*words, "--defenses", "ft") == 0
    folder = tmp_path / "mine-epochs1-bbx_test"
    table = (folder / "table.csv").read_text()
    assert "idle" in table and ",ft," in table
    capsys.readouterr()
    assert here("report", folder) == 0 and here("report", "--index", tmp_path) == 0
    assert not list((folder / ".state").glob("*/*.pt"))
    assert here("status", folder) == 2
    assert "no 'idle' among the defenses" in capsys.readouterr().err


def test_bars_in_a_narrow_terminal():
    """What is done of how much is shown beside the longest name, and the stage before it."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with bars(console, "cells") as told:
        told("digits badnets " + "cbd[variant=release] " * 9, "f_B, epochs", 2, 7)
    lines = [line for line in console.file.getvalue().splitlines() if "f_B, epochs: digits" in line]
    assert lines and "2/7" in lines[-1]

"""Ways to run cells: one that a plugin brings, and processes that die."""

import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RULES, here
from rich.console import Console

from backdoorbench_ext import records, registry, runner
from backdoorbench_ext.executors import Executor
from backdoorbench_ext.files import locked
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite
from backdoorbench_ext.work import Work

TOY = '''
"""An executor that runs the groups from the last to the first, as an example."""

from dataclasses import dataclass

from backdoorbench_ext.api import option
from backdoorbench_ext.executors import Executor


@dataclass(frozen=True)
class Backwards(Executor):
    """The last group first."""

    least: int = option(1, "groups that it wants", low=1)

    def run(self, groups, work, tell):
        assert len(groups) >= self.least
        for group in reversed(groups):
            yield work.run(group, tell)
'''
GRID = Suite(
    "grid",
    # a network that processes of their own know, too
    replace(RULES, model="cnn5"),
    ("digits[train=200,test=20]",),
    ("badnets",),
    ("none", "cbd[t1_steps=1]", "ft_sam[epochs=1]"),
).changed(epochs=6)


@pytest.fixture
def options(tmp_path):
    return Options(out=tmp_path, device="cpu")


def test_a_plugin_is_an_executor(tmp_path, monkeypatch, capsys):
    """One file, no edit elsewhere: it is listed, shown and used, with its options checked."""
    monkeypatch.setattr(registry, "_plugins", {})
    assert len(TOY.strip().splitlines()) < 30
    (tmp_path / "backwards.py").write_text(TOY)
    plugin = ("--plugin", tmp_path / "backwards.py")
    assert here("list", "executors", *plugin) == 0
    said = capsys.readouterr().out
    assert "backwards" in said and "from the last to the first" in said and "processes" in said
    grid = ("--dataset", "digits[train=200,test=20]", "--attacks", "badnets,blend")
    words = ("run", *grid, "--defenses", "none", "--model", "bbx_test", "--epochs", 1, *plugin)
    words += ("--out", tmp_path, "--device", "cpu")
    assert here(*words, "--executor", "backwards[least=0]") == 2
    assert "least must lie in [1, inf]" in capsys.readouterr().err
    assert here(*words, "--executor", "backwards", "--jobs", 2) == 2
    assert "either --jobs or --executor" in capsys.readouterr().err
    assert here(*words, "--executor", "backwards[least=2]") == 0
    first, second = (line for line in capsys.readouterr().err.splitlines() if "/2]" in line)
    assert "blend" in first and "badnets" in second


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_dies_costs_its_cell_a_retry_and_no_other(times, options):
    """SIGKILL of a process in its training: the cell is begun again, once; the others get their
    records, and so does this one when it is run again.
    """
    plan = runner.plan(GRID, GRID.cells(), options)
    groups = runner.groups(plan.todo)
    assert [len(group) for group in groups] == [1, 1, 1]
    executor = registry.create("executors", "processes[jobs=1]")
    killed = []

    def tell(cell, stage, done, total):
        if cell.defense.startswith("cbd") and done < total and len(killed) < times:
            (worker,) = children()
            killed.append(cell)
            os.kill(worker, signal.SIGKILL)
            time.sleep(0.2)

    outcomes = [
        o for ended in executor.run(groups, Work(plan.folder, options), tell) for o in ended
    ]
    failed = [outcome for outcome in outcomes if outcome.record is None]
    assert len(outcomes) == 3 and len(killed) == times
    if times == 1:
        assert not failed
        return
    assert [outcome.cell for outcome in failed] == killed[:1]
    assert "was killed, signal 9 (out of memory?), twice" in failed[0].error
    reason = (plan.folder / killed[0].path).with_suffix(".failed")
    assert failed[0].error in reason.read_text()
    (again,) = runner.run(runner.plan(GRID, GRID.cells(), options), jobs=1)
    assert again.cell == killed[0] and again.record and not reason.exists()


def children():
    """The processes below this one that run cells: not the one that tracks their resources."""
    own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in own if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_group_goes_on_behind_the_cell_that_killed_its_process(options, monkeypatch):
    """Cells that share a training: the one at hand failed, those before it are done, those behind
    it run in the next process.
    """
    from backdoorbench_ext.executors import processes

    grid = Suite(
        "grid",
        RULES,
        ("digits[train=200,test=20]",),
        ("badnets",),
        tuple(f"mcci[images={n}]" for n in (2, 3, 4)),
    ).changed(epochs=1)
    (group,) = runner.groups(grid.cells())
    work = Work(options.out / "grid", options)
    work.run(group[:1])
    deaths = Counter()
    outcomes, left = processes._bury(group, "was killed", work, deaths)
    assert [bool(outcome.record) for outcome in outcomes] == [True] and left == group[1:]
    outcomes, left = processes._bury(left, "was killed", work, deaths)
    assert [bool(outcome.record) for outcome in outcomes] == [False] and left == group[2:]


def test_what_another_run_has_is_passed_over(options, monkeypatch):
    """The group itself, or the victim that it starts from: the others run meanwhile, it is said who
    has it, and when that ends it is run here.
    """
    plan = runner.plan(GRID, GRID.cells(), options)
    work = Work(plan.folder, options)
    groups = {group[0].defense: group for group in runner.groups(plan.todo)}
    victim = Lab(groups["none"][0], options).victim_file
    elsewhere = ExitStack()
    elsewhere.enter_context(locked(work.state(groups["cbd[t1_steps=1]"])))
    elsewhere.enter_context(locked(victim))
    console = Console(record=True, file=io.StringIO(), width=200)
    looks = []

    def sleep(seconds):
        looks.append([work.awaits(group) for group in groups.values()])
        elsewhere.close()

    monkeypatch.setattr(runner.time, "sleep", sleep)
    ended = runner.run(plan, jobs=1, console=console)
    # No Defense trains the victim that another has, FT-SAM starts from it
    assert len(looks) == 1 and all("process" in who for who in looks[0])
    assert (
        f"waiting for 3 cells, the first with {platform.node()}, process" in console.export_text()
    )
    assert sorted(o.cell.defense for o in ended) == sorted(groups) and not any(
        o.error for o in ended
    )
    assert not list(options.out.rglob("*.awaits")) + list(options.out.rglob("*.holder"))


def test_cells_that_another_run_has_finished_are_not_run(options):
    plan = runner.plan(GRID, GRID.cells(), options)
    first = runner.run(plan, jobs=1, console=Console(file=io.StringIO()))
    # planned before the other ran
    again = runner.run(plan, jobs=1, console=Console(file=io.StringIO()))
    assert [o.record["surroundings"]["when"] for o in again] == [
        o.record["surroundings"]["when"] for o in first
    ]


def test_an_executor_that_drops_groups_does_not_go_on_for_ever(options):
    class Lazy(Executor):
        def run(self, groups, work, tell):
            yield work.run(groups[0], tell) if not list(work.folder.rglob("rate*.json")) else []

    plan = runner.plan(GRID, GRID.cells(), options)
    ended = runner.run(plan, executor=Lazy(), console=Console(file=io.StringIO()))
    assert [bool(o.error) for o in ended] == [False, True, True]
    assert ended[-1].error == "lazy gave no outcome"


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2, 4])
def test_runs_on_one_folder_share_the_work(runs, tmp_path):
    """Every cell once, none idle while cells are left."""
    words = "run --dataset digits --attacks badnets,blend,none --defenses none,cbd[t1=1],ft,fp"
    words += f" --model cnn5 --epochs 3 --jobs 1 --device cpu --out {tmp_path}"
    command = [sys.executable, "-m", "backdoorbench_ext", *words.split()]
    at_once = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(runs)]
    said = [process.communicate()[1] for process in at_once]
    assert all(process.returncode == 0 for process in at_once), said
    (suite,) = tmp_path.glob("*/suite.json")
    found = records.read_all(suite.parent)
    names = [tuple(record["cell"].values()) for record in found]
    assert len(names) == len(set(names)) == 12


def test_shares_are_disjoint_and_joined_again(tmp_path, capsys):
    """``--shard`` on two machines, ``bbx merge``: the records of one run; what cannot be joined is
    named, and nothing is copied.
    """
    words = [
        "run",
        "--dataset",
        "digits[train=200,test=20]",
        "--attacks",
        "badnets",
        "--epochs",
        "1",
    ]
    words += ["--defenses", "none,ft[epochs=1],cbd[t1_steps=1]", "--jobs", "1", "--device", "cpu"]
    words += ["--model", "cnn5"]
    places = [tmp_path / name for name in "ab"]
    for number, place in enumerate(places, 1):
        assert here(*words, "--shard", f"{number}/2", "--out", place) == 0
    folders = [next(place.glob("*/suite.json")).parent for place in places]
    assert [len(records.read_all(folder)) for folder in folders] == [2, 1]
    to = tmp_path / "all"
    assert here("merge", *folders, "--to", to) == 0
    assert "3 new records, 3 of 3 cells" in capsys.readouterr().err
    assert (to / "table.md").exists() and list(to.rglob("examples.png"))
    assert here("merge", *folders, "--to", to) == 0
    assert "0 new records" in capsys.readouterr().err
    # a hit more in one of two records of a cell
    file = next(folders[1].rglob("rate*.json"))
    text = json.loads(file.read_text())
    text["metrics"]["ca"][0] += 1
    file.write_text(json.dumps(text))
    (next(to.rglob(next(folders[0].rglob("rate*.json")).name))).unlink()
    assert here("merge", *folders, "--to", to) == 2
    error = capsys.readouterr().err
    assert "differ in metrics: delete one" in error and error.count("\n") == 1
    assert len(records.read_all(to)) == 2, "nothing was copied"
    for shard in ("0/2", "3/2", "1", "a/b"):
        assert here(*words, "--shard", shard, "--out", tmp_path / "c") == 2
        assert "--shard must be i/n" in capsys.readouterr().err
    assert here("merge", tmp_path / "nothing", "--to", to) == 2


def test_other_protocols_stay_apart(tmp_path, capsys):
    grids = (GRID, GRID.changed(epochs=2))
    for name, grid in zip("ab", grids, strict=True):
        grid.save(tmp_path / name)
    assert here("merge", tmp_path / "a", tmp_path / "b", "--to", tmp_path / "c") == 2
    assert "b has another protocol than" in capsys.readouterr().err


def test_a_network_that_is_not_at_hand_is_joined_all_the_same(tmp_path, capsys):
    """Records are enough: the plugin that made theirs may be on the other machine."""
    GRID.changed(model="not_at_hand").save(tmp_path / "a")
    assert here("merge", tmp_path / "a", "--to", tmp_path / "b") == 0
    cells = len(GRID.unresolved())
    assert f"0 new records, 0 of {cells} cells" in capsys.readouterr().err

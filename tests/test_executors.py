"""Ways to run cells: one that a plugin brings, and processes that die."""

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RULES, here

from backdoorbench_ext import registry, runner
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
    grid = ("--dataset", "digits[train=100,test=20]", "--attacks", "badnets,blend")
    words = ("run", *grid, "--defenses", "none", "--model", "bbx_test", "--epochs", 1, *plugin)
    words += ("--out", tmp_path, "--device", "cpu")
    assert here(*words, "--executor", "backwards[least=0]") == 2
    assert "least must lie in [1, inf]" in capsys.readouterr().err
    assert here(*words, "--executor", "backwards", "--jobs", 2) == 2
    assert "either --jobs or --executor" in capsys.readouterr().err
    assert here(*words, "--executor", "backwards[least=2]") == 0
    first, second = (line for line in capsys.readouterr().err.splitlines() if "/2]" in line)
    assert "blend" in first and "badnets" in second


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

"""What starts quickly starts without PyTorch."""

import json
import shlex
import subprocess
import sys

import pytest
from conftest import RULES, here
from test_registry import DEFENSE

from backdoorbench_ext import cli, registry, runner, suite
from backdoorbench_ext.cli.spelling import spelled
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite

SCRIPT = """
import sys
from backdoorbench_ext import cli
sys.argv = ["bbx", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as end:
    print("exit", end.code)
heavy = ("torch", "timm", "torchvision", "matplotlib", "pandas", "sklearn", "scipy")
print("imported", *(name for name in heavy if name in sys.modules))
"""
GRID = Suite("grid", RULES, ("digits[train=200,test=20]",), ("badnets",), ("none", "cbd", "mcr"))


def said(*words):
    """What a command prints, and what it has imported, in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text, _, imported = done.stdout.rpartition("imported")
    return text + done.stderr, imported.split()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--help"], "doctor"),
        (["run", "--help"], "--executor"),
        (["list"], "CBD: train a network that is backdoored"),
        (["run", "dmeo"], "Did you mean 'demo'"),
        (["run", "demo", "--epochs", "0"], "epochs must be at least 1"),
        (["table", "demo", "--metrics", "ars"], "Did you mean 'asr'"),
    ],
)
def test_without_pytorch(words, says):
    text, imported = said(*words)
    assert says in text and not imported


def test_status_without_pytorch(tmp_path, monkeypatch):
    """A folder keeps what its names stand for, as long as no code has changed."""
    grid = GRID.changed(model="cnn5", epochs=1)
    options = Options(out=tmp_path, device="cpu")
    runner.run(runner.plan(grid, grid.cells("none/rate"), options), jobs=1)
    folder = tmp_path / grid.name
    text, imported = said("status", folder)
    assert "1 done, 0 failed, 2 to run" in text and not imported
    kept = suite.Resolver.kept(folder)
    assert [c.path for c in grid.cells(resolver=kept)] == [c.path for c in grid.cells()]
    monkeypatch.setattr(registry, "fingerprint", lambda: "other code")
    assert not suite.Resolver.kept(folder)._texts
    for damaged in ("", "[]", '{"code": "other code", "texts": [1]}'):
        (folder / suite.SPECS).write_text(damaged)
        assert not suite.Resolver.kept(folder)._texts
    assert here("status", folder) == 0


def test_a_changed_method_is_looked_up_anew(tmp_path, monkeypatch):
    """Another default of a plugin: its cells have other records, and status says so."""
    monkeypatch.setattr(registry, "_plugins", {})
    plugin = tmp_path / "smoothing.py"
    plugin.write_text(DEFENSE)
    registry.add_file(plugin)
    grid = GRID.changed(model="cnn5", epochs=1)
    grid = Suite("grid", grid.protocol, grid.datasets, grid.attacks, ("smoothing",))
    grid.save(tmp_path / "grid")
    before = [cell.path for cell in grid.cells()]
    plugin.write_text(DEFENSE.replace("option(0.1", "option(0.2"))
    registry.add_file(plugin)
    after = [cell.path for cell in grid.cells(resolver=suite.Resolver.kept(tmp_path / "grid"))]
    assert before != after == [cell.path for cell in grid.cells()]
    assert json.loads((tmp_path / "grid" / suite.SPECS).read_text())["texts"]


def test_an_option_by_either_spelling(tmp_path, capsys):
    """--attack where it is --attacks, --to where it is --out; help shows one, and names values."""
    words = ("--datasets", "digits[train=200,test=50]", "--attack", "none", "--defense", "none")
    assert here("run", *words, "--seed", "3", "--to", tmp_path, "--name", "mine", "--dry-run") == 0
    assert f"{tmp_path}/mine/digits[train=200,test=50]/none/none/rate0.1-seed3" in (
        capsys.readouterr().out
    )
    # two different things stay two
    assert spelled({"to", "out"}, "to") == "to" and spelled({"out"}, "to") == "out"
    assert spelled({"attacks"}, "atack") == "atack"
    assert here("run", *words, "--name", "demo") == 2
    assert "there is a benchmark of that name" in capsys.readouterr().err
    assert here("run", "demo", "--name", "mine") == 2
    assert "go with --dataset" in capsys.readouterr().err


def test_every_command_has_examples(capsys):
    """Whose words it understands, as far as can be seen without running them."""
    for command in cli.app.registered_commands:
        name = command.name or command.callback.__name__
        assert here(name, "-h") == 0
        text = capsys.readouterr().out
        options, _, end = text.partition("Options:")[2].partition("Examples:")
        assert "<" not in options, name
        lines = end.split("\n")
        examples = [line.strip() for line in lines if line.strip()]
        assert examples and all(line.startswith(f"bbx {name}") for line in examples), name
        for line in examples:
            used = [word for word in shlex.split(line) if word.startswith("--")]
            assert all(f"{word} " in options for word in used), line


def test_list_runs(tmp_path, capsys):
    grid = Suite("mine", RULES, ("digits",), ("badnets[size=4]", "badnets"), ("none", "fp"))
    grid.save(tmp_path / "mine")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "suite.json").write_text("{")
    assert here("list", "runs", "--out", tmp_path, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert found["mine"] == "0 records, 4 cells: digits; badnets; none, fp"
    assert found["half"].startswith("broken: ")

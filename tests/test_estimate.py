"""``--dry-run``: what would run, for how long, how large, and what cannot work."""

import pytest
from conftest import here

from backdoorbench_ext import estimate

OWN = ("run", "--dataset", "digits[train=300,test=60]", "--attacks", "badnets,blend")
OWN += ("--model", "bbx_test", "--epochs", 2, "--device", "cpu", "--dry-run")


def test_what_a_run_would_take(tmp_path, capsys, monkeypatch):
    """Victims count once an attack; what took too long to time counts as plain training."""
    assert here(*OWN, "--defenses", "none,fp,ft", "--out", tmp_path) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 6 and not list(tmp_path.rglob("*.json"))
    # 6 x 128 KiB of records
    assert " for 6 trainings" in said.err and "about 1 MiB on disk" in said.err
    monkeypatch.setattr(estimate, "PATIENCE", -1.0)
    assert here(*OWN, "--defenses", "none,fp,ft", "--out", tmp_path) == 0
    assert "(1 of 3 methods were timed, others count as plain" in capsys.readouterr().err


def test_epochs_are_those_of_the_protocol(tmp_path, monkeypatch):
    """With a plain epoch of a second: two victims of two epochs, and ABL's own."""
    seen = []

    class Fixed(estimate.Watch):
        def __init__(self, cell, plan):
            self.an_epoch = 1.0

        def epochs(self, cell):
            seen.append(cell.defense)
            return {"none": (0.0, 2.0), "fp": (0.5, 2.0), "abl": (3.0, 0.0)}[cell.defense]

    monkeypatch.setattr(estimate, "Watch", Fixed)
    found = []
    monkeypatch.setattr(estimate.Estimate, "__str__", lambda self: found.append(self) or "")
    assert here(*OWN, "--defenses", "none,fp,abl", "--out", tmp_path, "--save-models") == 0
    (reckoned,) = found
    assert reckoned.seconds == 2 * (2.0 + 0.5 + 3.0) and sorted(seen) == ["abl", "fp", "none"]
    assert reckoned.bytes > 6 * 2**17


def test_what_cannot_work(tmp_path, capsys):
    """Said instead of the list; but cells can be listed without data."""
    words = ("--defenses", "cbd,nad[clean=9999]", "--out", tmp_path)
    assert here(*OWN, *words) == 2
    assert here(*OWN, "--defenses", "mcci[images=500]", "--out", tmp_path) == 2
    said = capsys.readouterr()
    assert not said.out and "needs 500 clean images" in said.err
    assert here("run", "cbd_table1", "--only", "cifar10 badnets/none", "--dry-run") == 0
    said = capsys.readouterr()
    assert "badnets/none/rate" in said.out
    assert "not checked: cifar10 needs --data DIR" in said.err


@pytest.mark.parametrize(
    ("seconds", "says"), [(12, "12 s"), (90, "2 min"), (5399, "90 min"), (12_240, "3.4 h")]
)
def test_words(seconds, says):
    assert estimate.duration(seconds) == says
    assert estimate.size(3 * 2**20) == "3 MiB" and estimate.size(1.5 * 2**30) == "1.5 GiB"

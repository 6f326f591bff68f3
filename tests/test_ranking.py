"""Who leads in a grid: ranks, ties and means against hand-worked numbers."""

import numpy as np
import pytest
from conftest import here
from test_tables import SUITE, record

from backdoorbench_ext import ranking
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.records import of_grid, read
from backdoorbench_ext.suite import Suite, load

ATTACKS = ("badnets", "blend", "trojan", "sig", "wanet")
DEFENSES = ("none", "fp", "nad", "abl", "cbd")
GRID = Suite("paper", SUITE.protocol, ("digits",), ATTACKS, DEFENSES, seeds=(0,))


def grid():
    """FP takes all of ASR and 10 points of CA: DER (100 - 10 + 100) / 2 = 95. NAD is 5 points
    above or below it in turn, ABL always 50, CBD has one attack.
    """
    found = []
    for i, attack in enumerate(ATTACKS):
        found.append(record(attack, "none", 900, 900, 0))
        found.append(record(attack, "fp", 800, 0, 800))
        found.append(record(attack, "nad", 900 if i % 2 else 700, 9 * i, 800))
        found.append(record(attack, "abl", 900, 900, 0))
    found.append(record("badnets", "cbd", 900, 450, 0))
    return found


def test_ranks_ties_and_means():
    """Over 5 attacks NAD's CA is 700, 900, 700, 900, 700 and its ASR 0 to 4: DER 90, 99.5, 89, 98.5
    and 88, in the mean 93.
    """
    found = ranking.rank(grid(), GRID)
    told = {row.defense: row for row in found.rows}
    assert [row.defense for row in found.rows] == ["fp", "nad", "abl", "cbd"]
    assert told["fp"].der == pytest.approx(95) and told["nad"].der == pytest.approx(93)
    assert [row.rank for row in found.rows] == [1, 1, 3, None]
    assert (told["nad"].first, told["nad"].last) == (1, 2)
    assert (told["abl"].first, told["abl"].last) == (3, 3)
    assert told["nad"].worst == pytest.approx(4) and told["nad"].worst_attack == "WaNet"
    assert told["nad"].ca_lost == pytest.approx(12) and told["abl"].ca_lost == 0
    lines = ranking.lines(found)
    assert lines[0][:5] == ["1 (1 to 2)", "FP", "95.0", "0.0", "0.0 (BadNets)"]
    assert lines[3][0] == "-- (1 of 5 attacks)"
    assert "means over 5 attacks" in ranking.note(found, GRID)


@pytest.mark.parametrize(
    ("defense", "on"),
    [
        ("cbd", "nothing"),
        ("cbd[t1=3]", "by hand"),
        # of a shortened grid
        ("abl[isolation_epochs=2,epochs=6]", "nothing"),
        ("backdoorbench:ft", "nothing"),
        ("unknown[x=1]", "by hand"),
    ],
)
def test_on_what_a_defense_was_tuned(defense, on):
    told = record("badnets", defense, 900, 9, 810)
    assert ranking.tuned(defense, [told]) == on
    found = "poisoned training set"
    assert ranking.tuned(defense, [told | {"tuned": {"trials": 4}}]) == found
    assert ranking.tuned(defense, [told | {"tuned": {"trials": 4}}, told]) == on


def test_few_trainings_say_nothing_of_chance():
    """Equal numbers share a rank, others are in order."""
    found = [r for r in grid() if r["cell"]["attack"] == "badnets"]
    found.append(record("badnets", "mcci[inference=avg]", 800, 0, 800))
    suite = Suite(
        "p", SUITE.protocol, ("digits",), ATTACKS, (*DEFENSES, "mcci[inference=avg]"), seeds=(0,)
    )
    ranked = ranking.rank(found, suite)
    assert [(row.defense, row.rank) for row in ranked.rows] == [
        ("fp", 1),
        ("mcci[inference=avg]", 1),
        ("nad", 3),
        ("cbd", 4),
        ("abl", 5),
    ]
    assert all(row.first is None for row in ranked.rows)
    assert "nothing is sure" in ranking.note(ranked, suite)


def test_seeds_that_all_have():
    """FP's second seed, which the others lack, does not count."""
    found = [*grid(), record("badnets", "fp", 0, 900, 0, seed=1)]
    found.append(record("badnets", "none", 900, 900, 0, seed=1))
    assert ranking.rank(found, GRID).rows[0].der == pytest.approx(95)


def test_a_defense_of_other_seeds_has_no_rank():
    """NAD's seed 1 on BadNets stands against seed 0 of two others; its other attacks do not."""
    found = [r for r in grid() if r["cell"]["defense"] != "nad" or r["cell"]["attack"] != "badnets"]
    found.append(record("badnets", "nad", 900, 0, 900, seed=1))
    ranked = ranking.rank(found, GRID)
    assert [(row.defense, row.rank) for row in ranked.rows] == [
        ("fp", 1),
        ("abl", 2),
        ("nad", None),
        ("cbd", None),
    ]
    assert ranking.lines(ranked)[2][0] == "-- (4 of 5 attacks)"


def test_a_repair_costs_its_victim_once(tmp_path):
    """From records that were run: FT's seconds are the victim's, which is No Defense's, and its
    own.
    """
    words = ("--dataset", "digits[train=200,test=20]", "--attacks", "badnets")
    words += ("--defenses", "none,ft[epochs=1]", "--model", "bbx_test", "--epochs", 2)
    assert here("run", *words, "--device", "cpu", "--jobs", 1, "--out", tmp_path) == 0
    (folder,) = tmp_path.glob("own-*")
    suite = load(str(folder))
    there = of_grid(suite, folder)
    bare, repaired = (next(folder.rglob(f"{name}*/rate*.json")) for name in ("none", "ft"))
    victim = read(bare)["time"]["training"]
    own = read(repaired)["time"]["stages"]
    assert own["train"] == victim and len(own) == 2
    (row,) = ranking.rank(there, suite).rows
    assert row.epochs == pytest.approx(2 * sum(own.values()) / victim)
    assert row.epochs > 2


def test_equal_methods_are_seldom_ranked_apart():
    """Of five equal defenses over six attacks the last is called worse than the first far less
    often than a coin would.
    """
    rng = np.random.default_rng(0)
    ranks = []
    for _ in range(20):
        ders = [rng.normal(90, 3, (2, 2)) for _ in range(6)]
        ranks.append([rank for rank, *_ in ranking._spans(ders)])
    assert np.mean([max(own) > 1 for own in ranks]) < 0.3


def test_nothing_to_rank(capsys, tmp_path):
    with pytest.raises(InputError, match="no defense has an attack"):
        ranking.rank(grid()[:1], GRID)
    assert here("rank", "demo", "--out", tmp_path) == 2
    assert "no records of demo yet" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_formats(form):
    text = ranking.render(ranking.rank(grid(), GRID), GRID, form)
    assert "FP" in text and "95.0" in text
    with pytest.raises(InputError, match="format must be markdown or latex"):
        ranking.render(ranking.rank(grid(), GRID), GRID, "html")

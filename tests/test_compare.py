"""Whether one defense is better than another: against hand-worked numbers, and by simulation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import here
from scipy.special import expit

from backdoorbench_ext.compare import Chance, difference, holm, seeds_needed, unpaired

RESULTS = Path(__file__).parents[1] / "results"


def bits(both, first, second, neither):
    """Two networks on images that both, one or neither of them got: bool (n,) each."""
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


def test_two_networks():
    """10 against 2 of 12 images that differ: p = 2 (1 + 12 + 66) / 4096; Agresti and Min's interval
    has (10.5 - 2.5) / 102 in its middle, and the variance ((10.5 + 2.5) / 102 - middle^2) / 102.
    """
    one = difference([[bits(60, 10, 2, 28)]])
    assert one.points == pytest.approx(8) and one.seeds == 1
    assert one.p == pytest.approx(158 / 4096)
    middle = 8 / 102
    half = 1.959964 * math.sqrt((13 / 102 - middle**2) / 102)
    assert (one.low, one.high) == pytest.approx((100 * (middle - half), 100 * (middle + half)))
    assert (one.first, one.second) == pytest.approx((70, 62))
    assert math.isnan(one.seeds_error) and one.sure and not one.equal


def test_equal_networks():
    one = difference([[bits(600, 0, 0, 400)]])
    assert one.p == 1 and not one.sure and one.equal


def test_seeds_alone():
    """Differences of 100, 0 and 100 points, the same on every image: 66.7 with a standard error of
    57.7 / sqrt 3, t = 2 with two degrees of freedom, p = 1 - 2 / sqrt 6.
    """
    all_ = bits(0, 4, 0, 0)
    none = bits(4, 0, 0, 0)
    one = difference([[all_, none, all_]])
    assert one.points == pytest.approx(200 / 3)
    assert one.seeds_error == pytest.approx(100 / 3) and one.images_error == 0
    assert one.p == pytest.approx(1 - 2 / math.sqrt(6))
    assert one.low == pytest.approx(200 / 3 - 4.302653 * 100 / 3) and one.high == 100
    # t(k - 1) 57.7 / sqrt k < 66.7 for the first time at k = 6
    assert seeds_needed(one) == 6


def test_seeds_of_some_attacks_alone():
    """Beside the attack of three seeds one of a single seed: half of the mean is the first's, and
    so is half of its standard error of 33.3.
    """
    all_ = bits(0, 4, 0, 0)
    none = bits(4, 0, 0, 0)
    one = difference([[all_, none, all_], [none]])
    assert one.points == pytest.approx(100 / 3) and one.seeds == 1
    assert one.seeds_error == pytest.approx(100 / 6) and one.images_error == 0
    assert one.low == pytest.approx(100 / 3 - 4.302653 * 100 / 6)
    assert not one.sure and seeds_needed(one) is None


def test_images_of_several_attacks_are_the_same():
    """Two attacks whose differences are those of one: no surer than one. On other images (another
    number of them) the variances of both add.
    """
    pair = bits(30, 10, 0, 60)
    error = 100 * math.sqrt(0.09 / 99)
    assert difference([[pair], [pair]]).images_error == pytest.approx(error)
    other = bits(30, 10, 0, 61)
    both = difference([[pair], [other]])
    second = 100 * (other[0].astype(float) - other[1]).std(ddof=1) / math.sqrt(101)
    assert both.images_error == pytest.approx(math.hypot(error, second) / 2)


def test_counts_alone():
    """Two shares as if independent: half an image is added to either count."""
    one = unpaired([[(70, 100, 62, 100)]])
    variance = sum(p * (1 - p) / 101 for p in (70.5 / 101, 62.5 / 101))
    assert one.images_error == pytest.approx(100 * math.sqrt(variance))
    assert one.points == pytest.approx(8) and not one.sure and not one.paired


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_chance():
    """Of images alone it is normal, of seeds alone Student's; the squares of both add up."""
    assert Chance(2.0, 0.0, 2).half(0.05) == pytest.approx(2 * 1.959964)
    assert Chance(0.0, 2.0, 2).half(0.05) == pytest.approx(2 * 4.302653)
    both = Chance(2.0, 2.0, 2)
    assert both.half(0.05) == pytest.approx(2 * math.hypot(1.959964, 4.302653))
    assert both.p(both.half(0.01)) == pytest.approx(0.01)
    assert Chance(0.0, 0.0, 2).p(0.0) == 1 and Chance(0.0, 0.0, 2).p(1.0) == 0


def test_chance_of_one_image_in_one_training_counts_once():
    """Three trainings whose 400 images come out at random: nothing of it is an image's own."""
    rng = np.random.default_rng(0)
    found = [
        difference([[(rng.random(400) < 0.5, rng.random(400) < 0.5) for _ in range(3)]])
        for _ in range(50)
    ]
    assert np.mean([one.images_error for one in found]) < 1
    assert 1.5 < np.mean([one.seeds_error for one in found]) < 2.5


def networks(rng, hard, count, spread):
    """Which images networks of one method get: images differ in how hard they are, trainings in
    how good they turn out.
    """
    return [rng.random(len(hard)) < expit(hard + rng.normal(0, spread)) for _ in range(count)]


def called_different(pairs, attacks, seeds, spread, alike):
    """The share of equal methods that are called different. Unless they are ``alike``, each has
    images of its own that it finds hard.
    """
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(pairs):
        groups = []
        for _ in range(attacks):
            hard = rng.normal(1, 1.5, 300)
            other = hard if alike else rng.normal(1, 1.5, 300)
            a = networks(rng, hard, seeds, spread)
            b = networks(rng, other, seeds, spread)
            groups.append(list(zip(a, b, strict=True)))
        called += difference(groups).sure
    return called / pairs


@pytest.mark.slow
@pytest.mark.parametrize("alike", [True, False], ids=["same images", "other images"])
@pytest.mark.parametrize(
    ("attacks", "seeds", "spread"),
    [(1, 1, 0.0), (1, 2, 0.1), (1, 3, 0.05), (1, 3, 0.5), (3, 3, 0.3)],
)
def test_equal_methods_are_seldom_called_different(attacks, seeds, spread, alike):
    share = called_different(2000, attacks, seeds, spread, alike)
    print(f"{attacks} attacks, {seeds} seeds, spread {spread}, {alike}: {100 * share:.1f} %")
    assert 0.015 < share < 0.062


def test_three_seeds_call_few_equal_methods_different():
    """The same for fewer pairs, which is quick: three standard errors around 5 %."""
    assert 0.01 < called_different(400, 1, 3, 0.5, True) < 0.083


def test_verdict_over_seeds(capsys):
    folder = RESULTS / "defenses_seeds"
    assert here("compare", folder, "abl", "none") == 0
    text = capsys.readouterr().out
    assert "lowers ASR against No Defense is not decided: -62.8 points (-100.0 to +55.0)" in text
    assert "BadNets: ASR not decidable with 3 seeds: about 2 more" in text
    assert here("compare", folder, "--baseline", "none", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["second"] for one in found} == {"none"} and len(found) > 5
    asr = next(one["mean"]["asr"] for one in found if one["first"].startswith("abl"))
    assert asr["seeds"] == 3 and asr["paired"] and not asr["sure"]
    assert asr["points"] == pytest.approx(asr["first"] - asr["second"])


def test_verdict_over_attacks(capsys):
    """Records of format 1 hold counts; one seed says nothing of another."""
    folder = RESULTS / "cbd_table1-scale0.4"
    assert here("compare", folder, "cbd", "abl") == 0
    text = capsys.readouterr().out
    assert "higher on 2 of 5 attacks" in text and "| Mean | 1 |" in text
    assert "One seed" in text and "these are not paired" in text
    assert here("compare", folder, "cbd", "abl", "--format", "latex") == 0
    assert r"+92.27 (+91.71 to +92.82)*" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("abl",), "give two defenses, or --baseline and one"),
        (("abl", "none", "--baseline", "none"), "give two defenses, or --baseline and one"),
        (
            ("alb", "none"),
            "no 'alb' among the defenses with records in defenses_seeds. Known: abl[",
        ),
        (("nad", "mcr", "--format", "csv"), "format must be one of markdown, latex, json"),
        (("fp", "fp"), "fp is given twice"),
    ],
)
def test_what_cannot_be_compared(words, says, capsys):
    assert here("compare", RESULTS / "defenses_seeds", *words) == 2
    assert says in capsys.readouterr().err

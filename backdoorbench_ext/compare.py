"""Is one defense better than another, and how sure is that: paired by image, and by seed.

Two sources of chance are told apart. Another test set would hold other images: their part of the
variance comes from the records' bits, image by image. Another training would give another network:
that part comes from the seeds. With one seed only the first is known, and the verdict says so.

* Difference of one pair of networks: McNemar's exact test (McNemar 1947,
  https://doi.org/10.1007/BF02295996), interval of Agresti and Min (2005,
  https://doi.org/10.1002/sim.1781).
* Of several: the square of the half interval is the sum of those of either source (Zou and Donner
  2008, https://doi.org/10.1002/sim.3095); seeds of several attacks by Satterthwaite (1946,
  https://doi.org/10.2307/3002019).
* Several attacks: Holm's correction (1979, https://www.jstor.org/stable/4615733).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import latex, records, tables
from .errors import InputError, nearest
from .frame import Place, key
from .metrics import COUNTED, get
from .naming import explained, heads, labels, title
from .records import Record
from .suite import Suite

LEVEL = 0.05
# smaller p values are 0
TINY = 1e-12
# points of a difference that nobody would mind, where an interval lies within
EQUAL = 1.0
# more seeds than these are not asked for
MOST_SEEDS = 100


@dataclass(frozen=True)
class Difference:
    """A metric of one defense less that of another.

    Args:
        points: in percent.
        low, high: the 95 % interval.
        p: that such a difference, or a larger one, is chance alone.
        seeds: pairs of trainings.
        images_error, seeds_error: standard errors, in points, of either source; nan where the
            source is unknown. In a mean over attacks, of those that have several seeds.
        paired: whether the records hold which images counted.
        first, second: the two rates, in percent.
    """

    points: float
    low: float
    high: float
    p: float
    seeds: int
    images_error: float
    seeds_error: float
    paired: bool
    first: float
    second: float

    @property
    def sure(self) -> bool:
        """Whether it is another number, by the level."""
        return self.p < LEVEL

    @property
    def equal(self) -> bool:
        """Whether a difference that matters is ruled out."""
        return self.low >= -EQUAL and self.high <= EQUAL

    def __str__(self) -> str:
        return f"{self.points:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


# a pair of trainings: the bits of both, or hits and images of both where there are no bits
Pair = tuple[np.ndarray, np.ndarray]


def difference(groups: Sequence[Sequence[Pair]]) -> Difference:
    """The mean difference over attacks, and over the seeds of each.

    Args:
        groups: an attack each, of a pair a seed: bool (n,) of both networks, the same images.
    """
    if len(groups) == 1 and len(groups[0]) == 1:
        return _one(*groups[0][0])
    points = [np.array([100 * (a.mean() - b.mean()) for a, b in group]) for group in groups]
    rates = [
        100 * float(np.mean([np.mean([pair[i].mean() for pair in group]) for group in groups]))
        for i in (0, 1)
    ]
    return _joined(points, _over_images(groups), rates, paired=True)


def _joined(
    points: Sequence[np.ndarray], images: float, rates: Sequence[float], *, paired: bool
) -> Difference:
    """The mean over attacks of differences by seed, with both sources of chance.

    Args:
        points: an attack each, float (seeds,).
        images: the standard error by other images.
    """
    seeds, freedom = _over_seeds(points)
    mean = float(np.mean([own.mean() for own in points]))
    chance = Chance(images, 0.0 if math.isnan(seeds) else seeds, freedom)
    half = chance.half(LEVEL)
    low = max(-100.0, mean - half)
    high = min(100.0, mean + half)
    p = chance.p(abs(mean))
    count = min(map(len, points))
    return Difference(mean, low, high, p, count, images, seeds, paired, rates[0], rates[1])


def _one(a: np.ndarray, b: np.ndarray) -> Difference:
    """Of two networks on the same images."""
    from scipy.stats import binomtest, norm

    n = len(a)
    more = int((a & ~b).sum())
    less = int((b & ~a).sum())
    p = float(binomtest(more, more + less).pvalue) if more + less else 1.0
    # one half added to each of the four counts
    size = n + 2
    middle = (more - less) / size
    error = math.sqrt(((more + less + 1) / size - middle**2) / size)
    z = norm.ppf(1 - LEVEL / 2)
    low = 100 * max(-1.0, middle - z * error)
    high = 100 * min(1.0, middle + z * error)
    rates = (100 * float(a.mean()), 100 * float(b.mean()))
    return Difference(rates[0] - rates[1], low, high, p, 1, 100 * error, math.nan, True, *rates)


def unpaired(groups: Sequence[Sequence[tuple[int, int, int, int]]]) -> Difference:
    """As ``difference`` where only counts are known: hits and images of both, a pair a seed. Both
    count as independent, which makes the interval wider.
    """
    points = []
    variances = []
    for group in groups:
        shares = [(a / n, b / m, n, m) for a, n, b, m in group]
        points.append(np.array([100 * (a - b) for a, b, _, _ in shares]))
        # seeds share their test images: their mean is no surer than one of them
        variances.append(np.mean([1e4 * (_spread(a, n) + _spread(b, m)) for a, b, n, m in shares]))
    images = math.sqrt(float(np.sum(variances))) / len(groups)
    rates = [
        float(np.mean([np.mean([100 * one[i] / one[i + 1] for one in group]) for group in groups]))
        for i in (0, 2)
    ]
    return _joined(points, images, rates, paired=False)


def _spread(share: float, n: int) -> float:
    """The variance of a share of ``n`` images, with one half added to both counts."""
    middle = (share * n + 0.5) / (n + 1)
    return middle * (1 - middle) / (n + 1)


def _over_images(groups: Sequence[Sequence[Pair]]) -> float:
    """The standard error in points by other images. Attacks on one test set share its images, and
    are averaged image by image; others are independent. What is chance of a single image in a
    single training is among the seeds' part, and is taken off here.
    """
    by_size: dict[int, list[np.ndarray]] = {}
    for group in groups:
        each = np.array([a.astype(float) - b.astype(float) for a, b in group])
        by_size.setdefault(each.shape[1], []).append(each)
    variance = 0.0
    for n, attacks in by_size.items():
        summed = np.sum([each.mean(0) for each in attacks], axis=0)
        single = sum(_single(each) / len(each) for each in attacks)
        variance += max(0.0, float(summed.var(ddof=1)) - single) / n
    return 100 * math.sqrt(variance) / len(groups)


def _single(each: np.ndarray) -> float:
    """The variance of what is neither an image's nor a training's, of (trainings, images)."""
    k, n = each.shape
    if k < 2:
        return 0.0
    rest = each - each.mean(0) - each.mean(1, keepdims=True) + each.mean()
    return float((rest**2).sum() / ((k - 1) * (n - 1)))


def _over_seeds(points: Sequence[np.ndarray]) -> tuple[float, float]:
    """The standard error in points by other seeds, and its degrees of freedom. Attacks of one seed,
    whose part is unknown, add nothing; nan where all are.
    """
    several = [own for own in points if len(own) > 1]
    if not several:
        return math.nan, 0.0
    parts = [float(own.var(ddof=1)) / len(own) for own in several]
    total = sum(parts)
    lower = sum(part**2 / (len(own) - 1) for part, own in zip(parts, several, strict=True))
    freedom = total**2 / lower if lower else math.inf
    return math.sqrt(total) / len(points), freedom


@dataclass(frozen=True)
class Chance:
    """Two sources of chance: images, of which there are thousands, and seeds, of which there are
    few.

    Args:
        images, seeds: standard errors.
        freedom: degrees of freedom of the seeds' one.
    """

    images: float
    seeds: float
    freedom: float

    def half(self, level: float) -> float:
        """Half an interval: the squares of the normal one of images and of Student's of seeds add
        up. (One t for both, with Satterthwaite's degrees of freedom, calls 13 % of equal methods
        different with two seeds.)
        """
        from scipy.stats import norm, t

        seeds = t.isf(level / 2, self.freedom) * self.seeds if self.seeds else 0.0
        return math.hypot(norm.isf(level / 2) * self.images, seeds)

    def p(self, distance: float) -> float:
        """The level at which the interval just reaches so far."""
        from scipy.optimize import brentq

        if not self.images and not self.seeds:
            return float(distance == 0)
        if not distance:
            return 1.0
        if self.half(TINY) < distance:
            return 0.0
        return float(brentq(lambda level: self.half(level) - distance, TINY, 1.0))


def holm(ps: Sequence[float]) -> list[float]:
    """P values corrected for how many there are: each times those that are left, in order."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = largest
    return adjusted


def seeds_needed(one: Difference) -> int | None:
    """How many seeds would make a difference of this size sure, if it is one; None if more images
    were needed, too, or one seed tells nothing of others.
    """
    if one.seeds < 2 or math.isnan(one.seeds_error):
        return None
    spread = one.seeds_error * math.sqrt(one.seeds)
    for count in range(one.seeds, MOST_SEEDS + 1):
        chance = Chance(one.images_error, spread / math.sqrt(count), count - 1)
        if chance.half(LEVEL) < abs(one.points):
            return count
    return None


@dataclass(frozen=True)
class Comparison:
    """Two defenses over the attacks that both have records of.

    Args:
        first, second: their names.
        places: per data set, rate and attack, each metric's difference, p corrected.
        whole: each metric's mean over the attacks.
    """

    first: str
    second: str
    places: Mapping[Place, Mapping[str, Difference]]
    whole: Mapping[str, Difference]

    @property
    def seeds(self) -> int:
        return min(one.seeds for row in self.places.values() for one in row.values())

    @property
    def most_seeds(self) -> int:
        """Of the attack that has most."""
        return max(one.seeds for row in self.places.values() for one in row.values())


def compare(there: Sequence[Record], suite: Suite, first: str, second: str) -> Comparison:
    """``first`` against ``second``; No Attack is left out.

    Raises:
        InputError: a name that has no records, or no attack of which both have some.
    """
    first, second = (_meant(name, there, suite) for name in (first, second))
    if first == second:
        raise InputError(f"{first} is given twice")
    pairs = _pairs(there, first, second)
    if not pairs:
        raise InputError(f"{first} and {second} have no attack, rate and seed in common")
    places: dict[Place, dict[str, Difference]] = {}
    whole: dict[str, Difference] = {}
    for metric in COUNTED:
        own = {place: group for place, group in pairs.items() if _has(group, metric)}
        if not own:
            continue
        found = {place: _measured([group], metric) for place, group in own.items()}
        corrected = holm([one.p for one in found.values()])
        for (place, one), p in zip(found.items(), corrected, strict=True):
            places.setdefault(place, {})[metric] = replace(one, p=p)
        whole[metric] = _measured(list(own.values()), metric)
    return Comparison(first, second, places, whole)


def _meant(name: str, there: Sequence[Record], suite: Suite) -> str:
    """A defense by its full name, or without options where there is one of that name."""
    known = list(dict.fromkeys(r["cell"]["defense"] for r in there))
    alike = [one for one in known if name in (one, one.partition("[")[0])]
    if name in known or len(alike) == 1:
        return name if name in known else alike[0]
    raise nearest(name, alike or known, f"defenses with records in {suite.name}")


def against(there: Sequence[Record], suite: Suite, baseline: str) -> list[tuple[str, str]]:
    """Every other defense with the baseline, where both have an attack in common."""
    baseline = _meant(baseline, there, suite)
    others = dict.fromkeys(r["cell"]["defense"] for r in there)
    return [
        (name, baseline) for name in others if name != baseline and _pairs(there, name, baseline)
    ]


def _pairs(
    there: Sequence[Record], first: str, second: str
) -> dict[Place, list[tuple[Record, Record]]]:
    """The records of both, by place, of each seed that both have."""
    by_defense: dict[str, dict[tuple[Place, int], Record]] = {first: {}, second: {}}
    for record in there:
        dataset, rate, attack, defense = key(record)
        if defense in by_defense and attack != "none":
            by_defense[defense][(dataset, rate, attack), record["spec"]["seed"]] = record
    pairs: dict[Place, list[tuple[Record, Record]]] = {}
    for (place, seed), record in by_defense[first].items():
        other = by_defense[second].get((place, seed))
        if other is not None:
            pairs.setdefault(place, []).append((record, other))
    return pairs


def _has(group: Sequence[tuple[Record, Record]], metric: str) -> bool:
    """Whether all records of an attack have images to count a metric over."""
    return all(r["metrics"].get(metric, (0, 0))[1] for pair in group for r in pair)


def _measured(groups: Sequence[Sequence[tuple[Record, Record]]], metric: str) -> Difference:
    """By bits where all records have them, of one test set; else by counts."""
    bits = [[tuple(records.hits(r, metric) for r in pair) for pair in group] for group in groups]
    whole = all(
        a is not None and b is not None and len(a) == len(b) for group in bits for a, b in group
    )
    one_set = all(_data(a) == _data(b) for group in groups for a, b in group)
    if whole and one_set:
        return difference(bits)  # type: ignore[arg-type]
    counts = [
        [(*a["metrics"][metric], *b["metrics"][metric]) for a, b in group] for group in groups
    ]
    return unpaired(counts)


def _data(record: Record) -> str | None:
    digest: str | None = record["surroundings"].get("data")
    return digest


def verdict(one: Comparison) -> list[str]:
    """What the comparison says, a sentence a line."""
    named = heads([one.first, one.second])
    a, b = named[one.first], named[one.second]
    called = _called(one)
    lines = [_asr(a, b, one)]
    if "ca" in one.whole:
        lines.append(_clean(one.whole["ca"]))
    rows = {called[place]: row["asr"] for place, row in one.places.items() if "asr" in row}
    if rows:
        worst = {i: max(rows, key=lambda name: _rate(rows[name], i)) for i in (0, 1)}
        told = [f"{n} {_rate(rows[worst[i]], i):.1f} ({worst[i]})" for i, n in ((0, a), (1, b))]
        lines.append(f"Worst ASR: {', '.join(told)}.")
    lines += [
        f"{name}: {_undecided(row)}" for name, row in rows.items() if not row.sure and not row.equal
    ]
    if one.seeds == 1:
        which = "One seed" if one.most_seeds == 1 else "Attacks of one seed"
        lines.append(
            f"{which}: the intervals are over images alone; other trainings may differ by more."
        )
    if not all(d.paired for row in one.places.values() for d in row.values()):
        lines.append(
            "Some records hold counts alone, or are of other test images: these are not paired."
        )
    return lines


def _rate(one: Difference, which: int) -> float:
    return one.second if which else one.first


def _called(one: Comparison) -> dict[Place, str]:
    """How attacks are called, with what tells them apart."""
    datasets = {dataset for dataset, *_ in one.places}
    rates = {rate for _, rate, _ in one.places}
    short = labels([attack for _, _, attack in one.places])
    called = {}
    for dataset, rate, attack in one.places:
        more = [dataset] if len(datasets) > 1 else []
        more += [f"{100 * rate:g} %"] if len(rates) > 1 else []
        called[dataset, rate, attack] = ", ".join([short[attack], *more])
    return called


def _asr(a: str, b: str, one: Comparison) -> str:
    found = [row["asr"] for row in one.places.values() if "asr" in row]
    if not found:
        return "There is no attack to compare on."
    asr = one.whole["asr"]
    if asr.equal:
        what = f"{a} and {b} have equal ASR within {EQUAL:g} point: {_change(asr)}"
    elif not asr.sure:
        what = f"Whether {a} lowers ASR against {b} is not decided: {_change(asr)}"
    else:
        what = f"{a} {'lowers' if asr.points < 0 else 'raises'} ASR against {b} {_amount(asr)}"
    if len(found) == 1:
        return f"{what}."
    clear = [d.points for d in found if d.sure and not d.equal]
    lower = sum(points < 0 for points in clear)
    higher = len(clear) - lower
    return f"{what} in the mean; lower on {lower}, higher on {higher} of {len(found)} attacks."


def _change(one: Difference) -> str:
    return f"{one.points:+.1f} points ({one.low:+.1f} to {one.high:+.1f})".replace("-0.0", "0.0")


def _amount(one: Difference) -> str:
    """A difference whose sign is said in words."""
    low, high = sorted((abs(one.low), abs(one.high)))
    return f"by {abs(one.points):.1f} points ({low:.1f} to {high:.1f})"


def _clean(one: Difference) -> str:
    if one.equal:
        return f"Clean accuracy is equal within {EQUAL:g} point: {_change(one)}."
    if not one.sure:
        return f"Whether clean accuracy changes is not decided: {_change(one)}."
    return f"Clean accuracy is {'higher' if one.points > 0 else 'lower'} {_amount(one)}."


def _undecided(one: Difference) -> str:
    seeds = f"{one.seeds} seed{'s' if one.seeds > 1 else ''}"
    told = f"ASR not decidable with {seeds}"
    needed = seeds_needed(one)
    if needed is None:
        return f"{told}."
    return f"{told}: about {max(1, needed - one.seeds)} more, if the difference is one."


HEAD = ("Attack", "seeds")


def rows(one: Comparison) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table: an attack each, then the mean."""
    shown = list(one.whole)
    called = _called(one)
    lines = []
    for place, row in one.places.items():
        cells = [_cell(row[m]) if m in row else "--" for m in shown]
        lines.append([called[place], str(min(d.seeds for d in row.values())), *cells])
    if len(one.places) > 1:
        seeds = str(one.seeds)
        if one.most_seeds > one.seeds:
            seeds += f" to {one.most_seeds}"
        lines.append(["Mean", seeds, *(_cell(one.whole[m]) for m in shown)])
    return [*HEAD, *(get(m).title for m in shown)], lines


def _cell(one: Difference) -> str:
    return f"{one}{'*' if one.sure else ''}"


def note(one: Comparison, suite: Suite) -> str:
    """What a reader must know of the table."""
    named = heads([one.first, one.second])
    options = "".join(f" {words}." for words in explained(named))
    return (
        f"{suite.name}: {named[one.first]} less {named[one.second]} in points, with 95 % "
        f"intervals. An asterisk: p below {LEVEL}, by Holm over the attacks.{options}"
    )


FORMATS = ("markdown", "latex", "json")


def render(comparisons: Sequence[Comparison], suite: Suite, form: str) -> str:
    """Verdicts and tables as "markdown", tables as "latex", or all numbers as "json".

    Raises:
        InputError: another format.
    """
    if form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    if form == "json":
        return json.dumps([_numbers(one) for one in comparisons], indent=1) + "\n"
    draw = _latex if form == "latex" else _markdown
    return "\n".join(draw(one, suite) for one in comparisons)


def _markdown(one: Comparison, suite: Suite) -> str:
    head, lines = rows(one)
    told = "\n".join(f"* {line}" for line in verdict(one))
    left = [column == HEAD[0] for column in head]
    table = tables.markdown_table(head, lines, left)
    return f"**{title(one.first)}** against **{title(one.second)}**\n\n{told}\n\n{table}\n"


def _latex(one: Comparison, suite: Suite) -> str:
    head, lines = rows(one)
    left = [column == HEAD[0] for column in head]
    label = f"{suite.name}-{one.first}-{one.second}"
    return latex.listing(head, lines, left, label, note(one, suite))


def _numbers(one: Comparison) -> dict[str, Any]:
    def told(row: Mapping[str, Difference]) -> dict[str, Any]:
        found = {metric: asdict(d) | {"sure": d.sure} for metric, d in row.items()}
        # JSON has no nan
        return {
            metric: {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in d.items()}
            for metric, d in found.items()
        }

    return {
        "first": one.first,
        "second": one.second,
        "verdict": verdict(one),
        "attacks": [
            {"dataset": dataset, "rate": rate, "attack": attack} | told(row)
            for (dataset, rate, attack), row in one.places.items()
        ],
        "mean": told(one.whole),
    }

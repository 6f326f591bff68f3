"""What plots show, gathered from records: pure data, before anything is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .frame import frame, summary
from .layout import present
from .metrics import Metric
from .naming import heads, labels, plain, rate, title
from .records import Record
from .registry import create, get_class, join, parse
from .suite import Suite


@dataclass(frozen=True)
class Bar:
    """A mean, and the ends of its whisker: the 95 % interval of one run, the range over seeds."""

    mean: float
    low: float
    high: float


# the bars of a group by metric; a group without records has none
Group = tuple[str, dict[str, Bar]]


@dataclass(frozen=True)
class Panel:
    """Groups of bars with a name each."""

    title: str
    groups: list[Group]

    @property
    def longest(self) -> int:
        """Letters of the longest line below its groups."""
        return max(len(line) for name, _ in self.groups for line in name.split("\n"))


def check(records: Sequence[Record], suite: Suite) -> None:
    """Raises: InputError: there are no records."""
    if not records:
        raise InputError(f"no records of {suite.name} yet: bbx run {suite.name}")


def _lines(name: str) -> str:
    """A title with what tells it from others below it."""
    return name.replace(", ", "\n")


def stacked(name: str) -> str:
    """A method's name with an option a line."""
    return name.replace("[", "\n").rstrip("]").replace(",", "\n")


def _bar(own: Any, metric: Metric) -> Bar | None:
    """The bar of the rows of a cell."""
    values = own[metric.key].dropna()
    if values.empty:
        return None
    if len(values) > 1:
        return Bar(values.mean(), values.min(), values.max())
    mean = values.mean()
    ends = [f"{metric.key}_low", f"{metric.key}_high"]
    low, high = own[ends].mean() if all(end in own for end in ends) else (mean, mean)
    return Bar(mean, low, high) if not math.isnan(low) else Bar(mean, mean, mean)


def bars(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric]) -> list[Panel]:
    """A panel an attack (and data set and rate), a group a defense; with one defense alone, a panel
    a data set and a group an attack.

    Raises:
        InputError: no records.
    """
    check(records, suite)
    data = frame(records, metrics)
    attacks, defenses = present(records, suite)
    rows = list(data[["attack", "rate"]].drop_duplicates().itertuples(index=False, name=None))
    rows.sort(key=lambda row: (attacks.index(row[0]), row[1]))
    panels = []
    for dataset in suite.datasets:
        there = data[data["dataset"] == dataset]
        if there.empty:
            continue
        if len(defenses) == 1 and len(rows) > 1:
            panels.append(_by_attack(there, dataset, defenses[0], rows, suite, metrics))
        else:
            panels += _by_defense(there, dataset, defenses, rows, metrics)
    return panels


def _group(name: str, own: Any, metrics: Sequence[Metric]) -> Group:
    drawn = {metric.key: _bar(own, metric) for metric in metrics}
    return name, {key: bar for key, bar in drawn.items() if bar is not None}


def _by_attack(
    there: Any,
    dataset: str,
    defense: str,
    rows: Sequence[tuple[str, float]],
    suite: Suite,
    metrics: Sequence[Metric],
) -> Panel:
    groups = []
    called = labels([attack for attack, _ in rows])
    for attack, share in rows:
        name = _lines(called[attack]) + (f"\n{rate(share)}" if attack in suite.own_rates else "")
        own = there[(there["attack"] == attack) & (there["rate"] == share)]
        groups.append(_group(name, own, metrics))
    words = " unless said" if suite.own_rates else ""
    shares = ", ".join(map(rate, suite.rates))
    name = plain("defenses", defense.partition("[")[0])
    return Panel(f"{name}   {dataset}, {shares} poisoned{words}", groups)


def _by_defense(
    there: Any,
    dataset: str,
    defenses: Sequence[str],
    rows: Sequence[tuple[str, float]],
    metrics: Sequence[Metric],
) -> list[Panel]:
    panels = []
    called = labels([attack for attack, _ in rows])
    for attack, share in rows:
        part = there[(there["attack"] == attack) & (there["rate"] == share)]
        if part.empty:
            continue
        groups = []
        for defense, name in heads(defenses).items():
            groups.append(_group(_lines(name), part[part["defense"] == defense], metrics))
        words = "not poisoned" if attack == "none" else f"{rate(share)} poisoned"
        panels.append(Panel(f"{called[attack]}   {dataset}, {words}", groups))
    return panels


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (CA, ASR) those that none beats in both, by CA."""
    best: list[tuple[float, float]] = []
    for ca, asr in sorted(points, key=lambda point: (-point[0], point[1])):
        if not best or asr < best[-1][1]:
            best.append((ca, asr))
    return best[::-1]


@dataclass(frozen=True)
class Grid:
    """Means over seeds: names of rows and columns, and by metric the numbers, nan for none."""

    rows: list[str]
    columns: list[str]
    values: dict[str, list[list[float]]]


def heatmap(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric]) -> Grid:
    """Defenses down, attacks (and data sets and rates) across.

    Raises:
        InputError: no records.
    """
    check(records, suite)
    means = summary(records, metrics)
    attacks, defenses = present(records, suite)
    short = labels(attacks)
    places = {(dataset, attack, share) for dataset, share, attack, _ in means}
    ordered = sorted(
        places, key=lambda p: (suite.datasets.index(p[0]), suite.attacks.index(p[1]), p[2])
    )
    sets = len({dataset for dataset, _, _ in ordered}) > 1
    rates = len({share for _, _, share in ordered}) > 1

    def name(dataset: str, attack: str, share: float) -> str:
        parts = {dataset: sets, short[attack]: True, rate(share): rates}
        return "\n".join(part for part, wanted in parts.items() if wanted)

    def value(place: tuple[str, str, float], defense: str, metric: Metric) -> float:
        dataset, attack, share = place
        numbers = means.get((dataset, share, attack, defense))
        return numbers[metric.key].mean if numbers else math.nan

    values = {
        m.key: [[value(place, defense, m) for place in ordered] for defense in defenses]
        for m in metrics
    }
    return Grid(list(heads(defenses).values()), [name(*place) for place in ordered], values)


@dataclass(frozen=True)
class Stage:
    """A part of a training: its losses by kind, after ``start`` epochs of the parts before it."""

    name: str
    start: int
    losses: dict[str, list[float]]

    @property
    def end(self) -> int:
        return self.start + len(self.losses[""])


@dataclass(frozen=True)
class Training:
    """A cell's stages, one after the other."""

    title: str
    stages: list[Stage]

    @property
    def epochs(self) -> int:
        return self.stages[-1].end

    def names(self) -> tuple[list[tuple[str, float, int]], int]:
        """Where the stages' names go, (name, left end in epochs, row from 0), and how many rows:
        above the stage, inward at the edges, a row higher where the name before it ends too late.
        """
        if len(self.stages) == 1:
            return [], 0
        placed = []
        taken = [0.0]
        for stage in self.stages:
            # of its letters, about
            wide = 0.027 * self.epochs * len(stage.name)
            left = min(max(0.0, (stage.start + stage.end - wide) / 2), self.epochs - wide)
            row = next((i for i, until in enumerate(taken) if left >= until), len(taken))
            taken[row : row + 1] = [left + wide]
            placed.append((stage.name, left, row))
        return placed, len(taken)


def losses(records: Sequence[Record], suite: Suite, audited: bool = False) -> list[Training]:
    """The losses of the cells of the first seed; ``audited``: of those that tell clean from
    poisoned alone.

    Raises:
        InputError: no records, or none with a loss, such as a victim that was made elsewhere.
    """
    check(records, suite)
    attacks, defenses = present(records, suite)
    told = " clean loss" if audited else " loss"
    shown = _of_first_seed(records, told)
    if not shown:
        words = " of clean and of poisoned images" if audited else ""
        raise InputError(f"the records of {suite.name} hold no losses{words}")
    names = heads(defenses)
    short = labels(attacks)
    sets = len({r["cell"]["dataset"] for r in shown}) > 1
    rates = len({r["spec"]["rate"] for r in shown}) > 1
    trainings = []
    for record in shown:
        cell = record["cell"]
        parts = [names[cell["defense"]], short[cell["attack"]]]
        if sets:
            parts.append(cell["dataset"])
        if rates:
            parts.append(rate(record["spec"]["rate"]))
        trainings.append(Training("   ".join(parts), _stages(record)))
    return trainings


def _of_first_seed(records: Sequence[Record], told: str) -> list[Record]:
    """The records of the lowest seed that have a curve whose name ends so."""
    first = min(r["spec"]["seed"] for r in records)
    return [
        r
        for r in records
        if r["spec"]["seed"] == first and any(name.endswith(told) for name in r["curves"])
    ]


def _stages(record: Record) -> list[Stage]:
    """The stages of a record with their losses; rounds are one stage."""
    parts: dict[str, list[float]] = {}
    for name, values in record["curves"].items():
        if name.endswith(" loss"):
            stage = re.sub(r", round \d+", "", name.removesuffix(" loss"))
            parts.setdefault(stage, []).extend(values)
    kinds = ("", ", clean", ", poisoned")
    stages: list[Stage] = []
    for name in parts:
        if not name.endswith(kinds[1:]):
            own = {kind: parts[name + kind] for kind in kinds if name + kind in parts}
            stages.append(Stage(name, stages[-1].end if stages else 0, own))
    return stages


@dataclass(frozen=True)
class Line:
    """CA and ASR of a stage of a defense, in percent, by seconds of training."""

    defense: str
    seconds: list[float]
    ca: list[float]
    asr: list[float]


# attack, data set, rate
Place = tuple[str, str, float]


def learning(records: Sequence[Record], suite: Suite) -> dict[Place, list[Line]]:
    """The curves of ``--audit``, of the first seed; a stage that several share (a victim; MCCI's
    training, looked at as AVG answers) is there once, as the first one's.

    Raises:
        InputError: no records, or none with these curves.
    """
    check(records, suite)
    looked = _of_first_seed(records, ", CA")
    if not looked:
        raise InputError(
            f"the records of {suite.name} hold no CA by epoch: bbx run {suite.name} --audit logs "
            "it, of cells that have no record yet"
        )

    def place(record: Record) -> Place:
        return record["cell"]["attack"], record["cell"]["dataset"], record["spec"]["rate"]

    shown: dict[Place, dict[Any, Line]] = {place(r): {} for r in looked}
    for record in sorted(looked, key=lambda r: suite.defenses.index(r["cell"]["defense"])):
        for line, shared in _curves(record):
            shown[place(record)].setdefault(shared, line)
    return {where: list(lines.values()) for where, lines in shown.items()}


def _curves(record: Record) -> Iterable[tuple[Line, Any]]:
    """The lines of a record's stages, and what is equal where a stage is shared.

    A victim is the same for all that start from it, though trained again elsewhere it rounds
    otherwise.
    """
    victim = "train" if _starts_from_victim(record["cell"]["defense"]) else None
    start = 0.0
    for stage, seconds in record["time"].get("stages", {}).items():
        ca = record["curves"].get(f"{stage}, CA", [])
        asr = record["curves"].get(f"{stage}, ASR", [])
        if ca and len(ca) == len(asr):
            when = [start + seconds * (epoch + 1) / len(ca) for epoch in range(len(ca))]
            shared: Any = victim if stage == victim else (stage, tuple(ca), tuple(asr))
            yield Line(record["cell"]["defense"], when, ca, asr), shared
        start += seconds


def _starts_from_victim(defense: str) -> bool:
    """Also No Defense, which is the victim; False of one that is not installed."""
    try:
        found = get_class("defenses", parse(defense)[0])
    except InputError:
        return False
    return bool(getattr(found, "after_training", False))


# by (method with other options, option, data set), and by attack (and rate): values of the option,
# and the metrics
Curves = dict[tuple[str, str, str], dict[str, list[tuple[float, dict[str, float]]]]]


def sensitivity(records: Sequence[Record], suite: Suite, metrics: Sequence[Metric]) -> Curves:
    """What becomes of a defense where one numeric option changes and the others do not.

    Raises:
        InputError: no records, or no such option.
    """
    check(records, suite)
    means = summary(records, metrics)
    attacks, defenses = present(records, suite)
    short = labels(attacks)
    rates = len({share for _, share, _, _ in means}) > 1
    found: Curves = {}
    for fixed, option, values in _varied(defenses):
        for (dataset, share, attack, defense), numbers in means.items():
            if defense in values:
                where = (title(fixed), option, dataset)
                line = short[attack] + (f", {rate(share)}" if rates else "")
                point = {metric.key: numbers[metric.key].mean for metric in metrics}
                found.setdefault(where, {}).setdefault(line, []).append((values[defense], point))
    if not found:
        raise InputError(f"{suite.name} has no defense that differs in one numeric option alone")
    for lines in found.values():
        for points in lines.values():
            points.sort(key=lambda point: point[0])
    return found


def _varied(defenses: Sequence[str]) -> Iterable[tuple[str, str, dict[str, float]]]:
    """Method with what is equal, option, and its value in each of several defenses."""
    families: dict[str, dict[str, dict[str, Any]]] = {}
    for text in defenses:
        name, options = parse(text)
        families.setdefault(name, {})[text] = options
    for name, variants in families.items():
        options = dict.fromkeys(option for own in variants.values() for option in own)
        for option in options:
            alike: dict[str, dict[str, float]] = {}
            for text, own in variants.items():
                value = own.get(option, _default(name, option))
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    rest = join(name, {key: own[key] for key in sorted(own) if key != option})
                    alike.setdefault(rest, {})[text] = float(value)
            for rest, values in alike.items():
                if len(set(values.values())) > 1:
                    yield rest, option, values


def _default(name: str, option: str) -> Any:
    """An option's default; None of a method that is not at hand."""
    try:
        return getattr(create("defenses", name), option, None)
    except InputError:
        return None

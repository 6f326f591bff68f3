"""Who leads in a grid, and how sure that is: a row a defense, over all attacks.

Ranked by the mean defense effectiveness rating (DER, BackdoorBench): what a defense takes from ASR
less what it takes from CA. Down the list, a defense shares the rank of those above it until it is
surely worse than the first of them. For that attacks, and the seeds of each, are drawn again with
replacement, for all defenses alike (bootstrap, Efron 1979,
https://doi.org/10.1214/aos/1176344552).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import latex, registry, tables
from .errors import InputError
from .frame import NAN, Place, key, values, where
from .layout import present
from .metrics import get
from .naming import explained, heads, labels
from .records import Record
from .suite import Suite
from .toolbox.checkout import chosen_on_tests

DRAWS = 2000
# trainings of a defense; of fewer, which agree by chance too often, nothing is said to be sure
LEAST = 5
# of either end of an interval of 95 %
TAIL = 0.025
METRICS = tuple(get(name) for name in ("ca", "asr", "arr", "der"))


@dataclass(frozen=True)
class Standing:
    """A defense over the attacks of a ranking; shares in percent.

    Args:
        tuned: on what its options were chosen.
        rank: from 1; None where it lacks an attack.
        first, last: the ranks that 95 % of the draws give; None of too few trainings.
        ca_lost: against No Defense of the same cell.
        epochs: what it takes in all, in epochs of plain training, by the seconds of its records;
            nan where No Defense ran on another device.
    """

    defense: str
    rank: int | None
    first: int | None
    last: int | None
    der: float
    asr: float
    worst: float
    worst_attack: str
    ca_lost: float
    arr: float
    attacks: int
    clean_images: int
    tuned: str
    epochs: float


@dataclass(frozen=True)
class Ranking:
    """Standings in order, how defenses are called, and over which attacks and seeds."""

    rows: list[Standing]
    named: Mapping[str, str]
    places: list[Place]
    seeds: int


def rank(there: Sequence[Record], suite: Suite) -> Ranking:
    """Rank the defenses of a suite over the attacks that at least half of them have, by the seeds
    that all have; where there are none, by the one that most have.

    Raises:
        InputError: no defense has an attack in common with No Defense.
    """
    cells = _cells(there)
    names = [d for d in suite.defenses if any(name == d for name, _ in cells) and _ranked(d)]
    held = {d: {place for name, place in cells if name == d} for d in names}
    bare = {place for name, place in cells if not _ranked(name)}
    places = [
        place
        for place in sorted(bare, key=lambda p: list(suite.attacks).index(p[2]))
        if 2 * sum(place in own for own in held.values()) >= len(names)
    ]
    whole = [d for d in names if held[d].issuperset(places)]
    if not places or not whole:
        raise InputError(f"{suite.name}: no defense has an attack that No Defense has, too")
    seeds = [_common([cells[d, place] for d in whole]) for place in places]
    for place, own in zip(places, seeds, strict=True):
        for d in whole:
            if cells[d, place].keys() >= set(own):
                cells[d, place] = {seed: cells[d, place][seed] for seed in own}
            else:
                del cells[d, place]
    whole = [d for d in whole if all((d, place) in cells for place in places)]
    if not whole:
        raise InputError(f"{suite.name}: no defense has seeds in common with others on all attacks")
    ders = [
        np.array([[cells[d, place][seed]["der"] for seed in own] for d in whole])
        for place, own in zip(places, seeds, strict=True)
    ]
    spans = dict(zip(whole, _spans(ders), strict=True))
    rows = [_standing(d, spans.get(d), cells, there, places) for d in names]
    rows.sort(key=lambda row: (row.rank is None, -row.der))
    # as in the suite's table
    named = heads(present(there, suite)[1])
    return Ranking(rows, named, places, min(map(len, seeds)))


def _common(cells: Sequence[Mapping[int, Any]]) -> list[int]:
    """The seeds that all defenses have on an attack; if there are none, the one of the most."""
    common = set.intersection(*(set(own) for own in cells))
    if common:
        return sorted(common)
    counts = Counter(seed for own in cells for seed in own)
    return [min(counts, key=lambda seed: (-counts[seed], seed))]


# rank, and the ends of its interval where there is one
Span = tuple[int, int | None, int | None]


def _spans(ders: Sequence[np.ndarray]) -> list[Span]:
    """The ranks of defenses.

    Args:
        ders: an attack each, float (defenses, seeds).
    """
    means = np.mean([own.mean(1) for own in ders], axis=0)
    order = np.argsort(-means, kind="stable")
    ranks = np.empty(len(means), int)
    if sum(own.shape[1] for own in ders) < LEAST:
        # equal numbers share a rank
        ranks = 1 + (means[None, :] > means[:, None]).sum(1)
        return [(int(rank), None, None) for rank in ranks]
    draws = _draws(ders)
    leader = order[0]
    for place, i in enumerate(order, 1):
        if (draws[:, leader] > draws[:, i]).mean() >= 1 - TAIL:
            leader = i
        ranks[i] = place if leader == i else ranks[leader]
    # in a draw the rank is one more than how many are better
    places = 1 + (draws[:, :, None] > draws[:, None, :]).sum(1)
    ends = np.quantile(places, [TAIL, 1 - TAIL], axis=0, method="nearest").astype(int)
    return [(int(ranks[i]), int(ends[0, i]), int(ends[1, i])) for i in range(len(means))]


def _draws(ders: Sequence[np.ndarray]) -> np.ndarray:
    """Mean DER of each draw of attacks and seeds: float (draws, defenses)."""
    rng = np.random.default_rng(0)
    draws = np.empty((DRAWS, len(ders[0])))
    for i in range(DRAWS):
        chosen = rng.integers(len(ders), size=len(ders))
        parts = [ders[a][:, rng.integers(ders[a].shape[1], size=ders[a].shape[1])] for a in chosen]
        draws[i] = np.mean([part.mean(1) for part in parts], axis=0)
    return draws


def _ranked(defense: str) -> bool:
    return defense.partition("[")[0] != "none"


def _cells(there: Sequence[Record]) -> dict[tuple[str, Place], dict[int, dict[str, float]]]:
    """The metrics by defense, place and seed; No Attack is left out, and what has no DER though
    it is no No Defense.
    """
    cells: dict[tuple[str, Place], dict[int, dict[str, float]]] = {}
    for record, numbers in zip(there, values(there, METRICS), strict=True):
        dataset, rate, attack, defense = key(record)
        if attack == "none" or (_ranked(defense) and math.isnan(numbers["der"])):
            continue
        own = cells.setdefault((defense, (dataset, rate, attack)), {})
        own[record["spec"]["seed"]] = numbers
    return cells


def _standing(
    defense: str,
    span: Span | None,
    cells: Mapping[tuple[str, Place], Mapping[int, Mapping[str, float]]],
    there: Sequence[Record],
    places: Sequence[Place],
) -> Standing:
    """The means of a defense over the attacks of the ranking that it has."""
    own = [place for place in places if (defense, place) in cells]

    def over(metric: str) -> list[float]:
        return [
            float(np.mean([numbers[metric] for numbers in cells[defense, place].values()]))
            for place in own
        ]

    lost = [
        float(np.mean([bare[seed]["ca"] - n["ca"] for seed, n in found.items() if seed in bare]))
        for place in own
        for found, bare in [(cells[defense, place], _bare(cells, place))]
    ]
    asr = over("asr")
    worst = int(np.argmax(asr)) if asr else 0
    rank_, first, last = span or (None, None, None)
    records = [r for r in there if r["cell"]["defense"] == defense]
    return Standing(
        defense,
        rank_,
        first,
        last,
        _mean(over("der")),
        _mean(asr),
        asr[worst] if asr else NAN,
        labels([attack for *_, attack in places])[own[worst][2]] if own else "",
        _mean(lost),
        _mean(over("arr")),
        len(own),
        max(r["given"]["clean_images"] for r in records),
        tuned(defense, records),
        _epochs(records, there),
    )


def tuned(defense: str, records: Sequence[Record]) -> str:
    """On what a defense's options were chosen, as far as records tell."""
    name, options = registry.parse(defense)
    if chosen_on_tests(name):
        return "test set"
    if all("tuned" in record for record in records):
        return "poisoned training set"
    # the lengths of a shortened grid are no choice
    lengths = set()
    with suppress(InputError):
        lengths = registry.lengths("defenses", name)
    return "by hand" if options.keys() - lengths else "nothing"


def _bare(
    cells: Mapping[tuple[str, Place], Mapping[int, Mapping[str, float]]], place: Place
) -> Mapping[int, Mapping[str, float]]:
    """No Defense of a place."""
    return next(own for (name, held), own in cells.items() if held == place and not _ranked(name))


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers)) if numbers else NAN


def _epochs(records: Sequence[Record], there: Sequence[Record]) -> float:
    """Seconds of a defense by those of No Defense of the same cell, times its epochs; those of a
    repair hold its victim's.
    """
    bare = {where(r): r for r in there if not _ranked(r["cell"]["defense"])}
    found = []
    for record in records:
        other = bare.get(where(record))
        if other is None or other["surroundings"]["device"] != record["surroundings"]["device"]:
            continue
        whole = other["time"]["training"]
        epochs = other["spec"]["protocol"]["recipe"]["epochs"]
        if whole:
            found.append(epochs * record["time"]["training"] / whole)
    return _mean(found)


BY_HAND = "tuned by hand: options are given, and how they were chosen is not recorded"
HEAD = (
    "Rank",
    "Defense",
    "DER ↑",
    "ASR ↓",
    "worst ASR ↓",
    "CA lost",
    "ARR ↑",
    "Clean images",
    "Tuned on",
    "Epochs",
)
WORDS = ("Rank", "Defense", "worst ASR ↓", "Tuned on")


def lines(ranking: Ranking) -> list[list[str]]:
    """The rows as text, in the order of ``HEAD``."""
    return [
        [
            _rank(row, ranking),
            ranking.named[row.defense],
            f"{row.der:.1f}",
            f"{row.asr:.1f}",
            f"{row.worst:.1f} ({row.worst_attack})",
            f"{row.ca_lost:.1f}",
            f"{row.arr:.1f}",
            str(row.clean_images),
            row.tuned,
            "--" if math.isnan(row.epochs) else f"{row.epochs:.0f}",
        ]
        for row in ranking.rows
        if row.attacks
    ]


def _rank(row: Standing, ranking: Ranking) -> str:
    if row.rank is None:
        return f"-- ({row.attacks} of {len(ranking.places)} attacks)"
    span = "" if row.first is None else f" ({row.first} to {row.last})"
    return f"{row.rank}{span}"


def note(ranking: Ranking, suite: Suite) -> str:
    """What a reader must know of the ranking."""
    shown = {row.defense for row in ranking.rows if row.attacks}
    count = len(ranking.places)
    called = labels(list(dict.fromkeys(attack for *_, attack in ranking.places)))
    options = explained({d: short for d, short in ranking.named.items() if d in shown}, called)
    sure = (
        "a rank is shared with those above until a defense is surely worse than their first; in "
        f"brackets where 95 % of {DRAWS} draws of attacks and seeds put it"
        if ranking.rows[0].first is not None
        else f"fewer than {LEAST} trainings a defense: the order of the numbers, nothing is sure"
    )
    attacks = ", ".join(called.values())
    parts = [
        f"{suite.name}: means over {count} attack{'s' if count > 1 else ''} ({attacks}) and "
        f"{ranking.seeds} seed{'s' if ranking.seeds > 1 else ''}; percent; by DER, the defense "
        "effectiveness rating",
        sure,
        *([BY_HAND] if any(row.tuned == "by hand" for row in ranking.rows) else []),
        "CA lost is against No Defense; epochs are the whole cost in epochs of plain training, by "
        "the clock",
        *(["options: " + "; ".join(options)] if options else []),
    ]
    return (
        ". ".join(part[0].upper() + part[1:] if i else part for i, part in enumerate(parts)) + "."
    )


def render(ranking: Ranking, suite: Suite, form: str) -> str:
    """The ranking as "markdown" or "latex".

    Raises:
        InputError: another format.
    """
    told = note(ranking, suite)
    left = [name in WORDS for name in HEAD]
    if form == "markdown":
        return f"{tables.markdown_table(HEAD, lines(ranking), left)}\n\n{told}\n"
    if form != "latex":
        raise InputError(f"format must be markdown or latex, not {form!r}")
    return latex.listing(HEAD, lines(ranking), left, f"{suite.name}-ranking", told, names=2)

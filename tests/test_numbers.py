"""Numbers on the pages are those of the records."""

import functools
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import pytest

from backdoorbench_ext import records, registry, suite

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "results").is_dir(), reason="not a checkout: no records"
)

PAGES = ["README.md", *(f"docs/results/{p.name}" for p in (ROOT / "docs/results").glob("*.md"))]
METRICS = ("ca", "asr", "arr")
# a share in percent, in bold or not, and its deviation over seeds
NUMBER = r"\*{0,2}(\d{1,3}(?:\.\d+)?)\*{0,2}(?: ± (\d+\.\d+))?"
SLASHES = re.compile(rf"(?<![\d/.]){NUMBER} / {NUMBER} / {NUMBER}(?! /|\d)")
# in columns of their own: with three deviations they are CA, ASR and ARR
SPREAD = NUMBER.removesuffix("?")
COLUMNS = re.compile(rf"\| {SPREAD} \| {SPREAD} \| {SPREAD} \|")
# without a record here: by the methods' own code, by versions whose records are in the history
# alone, or other quantities
ELSEWHERE = {
    "dbd.md": {"56.2 / 26.7 / 49.9", "58.1 / 70.9 / 16.3"},
    "demo.md": {"79.7 / 0.8 / 63.3"},
    "index.md": {"0.13 / 3.21 / 0.38"},
    "mcci-table1.md": {"48.9 / 9.2 / 34.8", "17.7 / 0.0 / 19.2", "39.0 / 1.3 / 32.2"},
}


@functools.cache
def single():
    """CA, ASR and ARR in percent: of every record and probe, and of the papers."""
    found = [own for cells in by_seed().values() for own in cells.values()]
    for name in registry.modules("benchmarks"):
        published = suite.load(name).reported.values()
        found += [[own[m] for m in METRICS] for own in published if own.keys() >= set(METRICS)]
    return found


@functools.cache
def spreads():
    """Means and deviations over the seeds of every cell that has several."""
    runs = [list(zip(*cells.values(), strict=True)) for cells in by_seed().values()]
    return [
        ([mean(own) for own in columns], [stdev(own) for own in columns])
        for columns in runs
        if len(columns[0]) > 1
    ]


@functools.cache
def by_seed():
    found = defaultdict(dict)
    for file in (ROOT / "results").rglob("rate*-seed*.json"):
        record = records.read(file)
        spec = dict(record["spec"])
        seed = spec.pop("seed")
        # a trigger's own follows the cell's
        spec["attack"] = {key: own for key, own in spec["attack"].items() if key != "seed"}
        for probe, counts in {"": record["metrics"], **record.get("probes", {})}.items():
            if all(counts[metric][1] for metric in METRICS):
                shares = [100 * counts[metric][0] / counts[metric][1] for metric in METRICS]
                found[file.parents[2], json.dumps(spec, sort_keys=True), probe][seed] = shares
    return found


def rounds_to(numbers, printed):
    """Whether these are the numbers, as far as they are printed; 100 and 0 stand for 100.0, 0.0."""
    for number, text in zip(numbers, printed, strict=True):
        _, _, decimals = text.partition(".")
        places = 1 if text in ("0", "100") else len(decimals)
        if abs(number - float(text)) > 0.5 * 10**-places + 1e-9:
            return False
    return True


def known(found):
    printed = found.groups()[::2]
    deviations = found.groups()[1::2]
    if not any(deviations):
        means = [own for own, _ in spreads()]
        return any(rounds_to(numbers, printed) for numbers in [*single(), *means])
    return any(rounds_to(m, printed) and rounds_to(d, deviations) for m, d in spreads())


@pytest.mark.parametrize("page", PAGES)
def test_numbers_are_in_the_records(page):
    """CA / ASR / ARR of a page are of one record, of the mean of several, or published."""
    text = (ROOT / page).read_text()
    told = [*SLASHES.finditer(text), *COLUMNS.finditer(text)]
    unknown = {found[0] for found in told if not known(found)}
    assert unknown == ELSEWHERE.get(Path(page).name, set())


def test_a_number_that_was_rounded_twice_is_none_of_them():
    assert rounds_to([93.349, 0.98, 93.04], ["93.3", "1.0", "93"])
    assert not rounds_to([93.349, 0.98, 93.04], ["93.4", "1.0", "93"])
    assert not rounds_to([99.6, 0.4, 0.0], ["100", "0.4", "0"])

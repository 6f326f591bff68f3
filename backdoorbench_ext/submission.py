"""Results as one file that a stranger can check: records with their bits, the grid, digests.

What can be recomputed is: every metric from the bits, every spec from the names of its cell and the
benchmark here. Bits and counts that were made up together, and agree, are found by running a cell
again, and by nothing else.
"""

from __future__ import annotations

import hashlib
import json
import random
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from rich.console import Console

from . import __version__, records, runner, suite, verified
from .errors import InputError, one_line, reason
from .files import write_whole
from .images import Images
from .lab import Lab, data_digest
from .options import Options
from .records import Record
from .suite import AXES, Cell, Suite
from .verified import STATES, TOLERANCE

FORMAT = 1
MANIFEST = "manifest.json"
# bytes of a file, and of all
LARGEST = 2**26
ALL = 2**31


class Manifest(msgspec.Struct):
    """What a submission says of itself; ``files``: the SHA-256 of each by its place."""

    format: int
    benchmark: str
    version: str
    files: dict[str, str]


@dataclass(frozen=True)
class Checked:
    """What became of a submission: the state of every record, and all that is wrong."""

    benchmark: str
    states: Mapping[str, str]
    problems: list[str]
    notes: list[str]

    def __str__(self) -> str:
        found = Counter(self.states.values())
        told = ", ".join(f"{found[state]} {state}" for state in STATES if found[state])
        return f"{self.benchmark}: {len(self.states)} records, {told or 'none checked'}"


def pack(grid: Suite, folder: Path, to: Path) -> int:
    """Write the records of a suite's folder, and what they are, as a zip; how many there are.

    Raises:
        InputError: there are none, or the folder's cannot be read.
    """
    places = [cell.path for cell in grid.cells() if (folder / cell.path).exists()]
    if not places:
        raise InputError(f"{folder}: no records of {grid.name} to submit")
    for place in places:
        records.read(folder / place)
    data = {place.as_posix(): (folder / place).read_bytes() for place in places}
    digests = {place: hashlib.sha256(text).hexdigest() for place, text in data.items()}
    manifest = Manifest(FORMAT, grid.name, __version__, digests)
    text = json.dumps(msgspec.to_builtins(manifest), indent=1).encode()
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, own in {MANIFEST: text, **data}.items():
                # no time of writing: equal records give equal files
                archive.writestr(zipfile.ZipInfo(name), own, zipfile.ZIP_DEFLATED)
        file.seek(0)
        write_whole(to, file.read())
    return len(places)


def verify(
    file: Path,
    options: Options,
    rerun: int = 0,
    console: Console | None = None,
    *,
    keep: bool = False,
) -> Checked:
    """Check a submission against the benchmark of its name as it is here.

    Args:
        options: ``data`` for the test sets; the rest for cells that are run again.
        rerun: how many cells, chosen at random.
        keep: put records in which nothing is wrong into ``options.out``, with their states.

    Raises:
        InputError: not a submission at all: no zip, unsafe, another format, no such benchmark; or
            there is another record of a cell where it is to be kept.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, places, problems = _unpacked(file, folder)
        grid = _benchmark(manifest.benchmark)
        there: dict[str, tuple[Cell, Record]] = {}
        states: dict[str, str] = {}
        for place in places:
            try:
                record = records.read(folder / place)
                cell = _cell(grid, record)
                states[place] = _recomputed(record, cell, place)
                there[place] = cell, record
            except (InputError, ValueError, KeyError, TypeError) as error:
                problems.append(f"{place}: {reason(error).replace(f'{folder}/', '')}")
        found, notes = _test_sets(there, options)
        problems += found
        if rerun and not problems:
            chosen = random.SystemRandom().sample(sorted(there), min(rerun, len(there)))
            for place in chosen:
                why = _again(*there[place], options, console)
                problems += [f"{place}: {why}"] if why else []
                states[place] = states[place] if why else "re-run"
        if keep and not problems:
            whole = _with_all(grid, [cell for cell, _ in there.values()])
            _keep(folder, whole, {p: (own, states[p]) for p, (_, own) in there.items()}, options)
    return Checked(manifest.benchmark, states, [one_line(text) for text in problems], notes)


def _with_all(grid: Suite, cells: Sequence[Cell]) -> Suite:
    """The benchmark with the defenses and seeds that a submission has beside its own."""
    defenses = dict.fromkeys((*grid.defenses, *(cell.defense for cell in cells)))
    seeds = dict.fromkeys((*grid.seeds, *(cell.seed for cell in cells)))
    return replace(grid, defenses=tuple(defenses), seeds=tuple(seeds))


def _keep(
    folder: Path, grid: Suite, states: Mapping[str, tuple[Record, str]], options: Options
) -> None:
    """Put records among the results of their suite, those that are there already stay.

    Raises:
        InputError: another record of the same cell is there; nothing is written then.
    """
    to = options.out / grid.name
    data = {place: (folder / place).read_bytes() for place in states}
    for place, own in data.items():
        if (to / place).exists() and (to / place).read_bytes() != own:
            raise InputError(f"{to / place} is another record of that cell; give another --out")
    for place, own in data.items():
        write_whole(to / place, own)
    grid.save(to, AXES)
    verified.keep(to, list(states.values()))


def _unpacked(file: Path, folder: Path) -> tuple[Manifest, list[str], list[str]]:
    """Write what the manifest names into a folder, if all of it is safe: the places that were
    written, and what does not agree with it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            _check_safe(file, infos)
            texts = {info.filename: _read(archive, info) for info in infos}
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"{file}: not a submission ({reason(error)})") from error
    try:
        manifest = msgspec.json.decode(texts.pop(MANIFEST), type=Manifest)
    except (KeyError, msgspec.MsgspecError) as error:
        raise InputError(f"{file}: no manifest that can be read ({reason(error)})") from error
    if manifest.format != FORMAT:
        raise InputError(f"{file}: submission format {manifest.format}, this reads {FORMAT}")
    # alone of names that were checked: a manifest may name any file of this machine
    places = []
    problems = [f"{place}: not in the manifest" for place in sorted(set(texts) - {*manifest.files})]
    for place, digest in manifest.files.items():
        if place not in texts:
            problems.append(f"{place}: in the manifest, not in the file")
        elif hashlib.sha256(texts[place]).hexdigest() != digest:
            problems.append(f"{place}: its digest is not the manifest's")
        else:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(texts[place])
            places.append(place)
    return manifest, places, problems


def _check_safe(file: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raises: InputError: names that leave the folder, links, files too large, or one twice."""
    if sum(info.file_size for info in infos) > ALL:
        raise InputError(f"{file}: larger than {ALL / 2**20:.0f} MiB when unpacked")
    seen: set[str] = set()
    for info in infos:
        place = PurePosixPath(info.filename)
        mode = info.external_attr >> 16
        why = ""
        if place.is_absolute() or ".." in place.parts or "\\" in info.filename:
            why = "leaves the folder"
        elif mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            why = "is not a regular file"
        elif info.file_size > LARGEST:
            why = f"is larger than {LARGEST / 2**20:.0f} MiB"
        elif info.filename in seen:
            why = "is there twice"
        if why:
            raise InputError(f"{file}: {info.filename!r} {why}")
        seen.add(info.filename)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member, no longer than it says."""
    with archive.open(info) as member:
        return member.read(LARGEST + 1)


def _benchmark(name: str) -> Suite:
    """The benchmark here that a suite's name means, at the scale that it names."""
    base, _, scale = name.partition("-scale")
    try:
        grid = suite.load(base)
        return grid.changed(scale=float(scale)) if scale else grid
    except (InputError, ValueError) as error:
        raise InputError(f"{base!r} is no benchmark here: give its file with --plugin") from error


def _cell(grid: Suite, record: Record) -> Cell:
    """The benchmark's cell of a record's names.

    Raises:
        InputError: the benchmark has no such data set, attack or rate; or no such defense is
            installed.
    """
    dataset, attack, defense = (record["cell"][k] for k in ("dataset", "attack", "defense"))
    rate = record["spec"]["rate"]
    rates = (grid.own_rates[attack],) if attack in grid.own_rates else grid.rates
    for what, known in (("dataset", grid.datasets), ("attack", grid.attacks)):
        if record["cell"][what] not in known:
            raise InputError(f"{what} {record['cell'][what]} is not among {grid.name}'s")
    if rate not in rates:
        raise InputError(f"poisoning rate {rate:g} is not among {grid.name}'s")
    own = replace(
        grid,
        datasets=(dataset,),
        attacks=(attack,),
        defenses=(defense,),
        rates=(rate,),
        own_rates={},
        leave_out=(),
        seeds=(record["spec"]["seed"],),
    )
    return own.cells()[0]


def _recomputed(record: Record, cell: Cell, place: str) -> str:
    """The state of a record after all that can be recomputed was.

    Raises:
        InputError: something does not agree.
    """
    if cell.path.as_posix() != place:
        parts = [key for key, own in cell.spec.items() if _plain(own) != record["spec"].get(key)]
        what = f"its {' and '.join(parts)}" if parts else "its place"
        raise InputError(f"{what}: not what its names mean in this benchmark and version")
    bits = {metric: records.hits(record, metric) for metric in record["metrics"]}
    lost = {"ca", "asr", "arr"} - {*record["metrics"]}
    if lost:
        raise InputError(f"has no {', '.join(sorted(lost))}")
    asr = bits["asr"]
    arr = bits["arr"]
    if asr is not None and arr is not None:
        if len(asr) != len(arr):
            raise InputError(f"ASR is over {len(asr)} images, ARR over {len(arr)}")
        if (both := int((asr & arr).sum())) > 0:
            raise InputError(f"{both} images count for ASR and for ARR: they have one prediction")
    given = record["given"]
    poisoned = given.get("poisoned")
    wanted = cell.rate * given["train_images"]
    if cell.attack != "none" and poisoned is not None and not 0 < poisoned <= 1.01 * wanted + 1:
        raise InputError(f"{poisoned} poisoned images where the rate gives {wanted:.0f}")
    if record["time"]["training"] < 0:
        raise InputError("trained for less than no time")
    return "recomputed" if all(own is not None for own in bits.values()) else "self-reported"


def _plain(spec: Any) -> Any:
    """A part of a spec as a record holds it."""
    return json.loads(json.dumps(spec))


def _test_sets(
    there: Mapping[str, tuple[Cell, Record]], options: Options
) -> tuple[list[str], list[str]]:
    """What is wrong with the images that numbers are over, and what could not be looked at."""
    problems: list[str] = []
    notes: list[str] = []
    by_dataset: dict[str, list[str]] = {}
    for place, (cell, _) in there.items():
        by_dataset.setdefault(cell.dataset, []).append(place)
    for dataset, places in by_dataset.items():
        cell = there[places[0]][0]
        test: Images | None = None
        try:
            digest = data_digest(cell, options)
            test = Lab(cell, options).clean[1]
        except InputError as error:
            notes.append(f"{dataset}: not at hand, records compared with each other ({error})")
            digest = _most([there[place][1]["surroundings"].get("data") for place in places])
        size = len(test) if test else _most([there[p][1]["metrics"]["ca"][1] for p in places])
        for place in places:
            record = there[place][1]
            if record["surroundings"].get("data", digest) != digest:
                problems.append(f"{place}: made of other images of {dataset}")
            count = record["metrics"]["ca"][1]
            if count != size:
                problems.append(f"{place}: CA over {count} test images, {dataset} has {size}")
    return problems, notes


def _most(values: Sequence[Any]) -> Any:
    """The value that most records have."""
    return Counter(values).most_common(1)[0][0]


def _again(cell: Cell, record: Record, options: Options, console: Console | None) -> str:
    """Run a cell: in what it differs from its record, "" if it does not by more than is allowed."""
    console = console or Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        own = Suite("again", cell.protocol, (cell.dataset,), (cell.attack,), (cell.defense,))
        own = replace(own, rates=(cell.rate,), seeds=(cell.seed,))
        plan = runner.plan(own, [cell], replace(options, out=Path(name)))
        (outcome,) = runner.run(plan, jobs=1, console=console)
    if outcome.record is None:
        return f"failed when it was run again ({outcome.error})"
    for metric, (hits, n) in outcome.record["metrics"].items():
        before, of = record["metrics"][metric]
        if n and of and abs(100 * hits / n - 100 * before / of) > TOLERANCE:
            return (
                f"{metric.upper()} is {100 * hits / n:.2f} when it is run again, "
                f"{100 * before / of:.2f} here, more than {TOLERANCE:g} points apart"
            )
    return ""

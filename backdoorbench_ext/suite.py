"""A benchmark: a grid of cells under one protocol, and what decides each cell's result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any
from unicodedata import category

import msgspec

from . import registry
from .errors import InputError, told
from .files import locked, write_text
from .protocols import NETWORKS, Protocol
from .reading import Number, Text, parsed

FILE = "suite.json"
# what stands in a protocol's name before the share that is run
SCALED = ", scale "
SPECS = ".specs.json"
AXES = ("datasets", "attacks", "defenses", "rates", "seeds")
# what several runs of one grid may differ in
RUNS = ("rates", "seeds")
# bytes of a part of a path; file systems take 255, and a file being written has more
LONGEST_NAME = 200
# what JSON calls a published number: data set, attack, defense, rate
Reported = list[tuple[Text, Text, Text, Number, dict[Text, float]]]


def short_hash(text: str) -> str:
    """The first ten hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:10]


def digest(spec: Mapping[str, Any]) -> str:
    """A short name for a spec: equal specs and nothing else give the same."""
    return short_hash(json.dumps(spec, sort_keys=True))


def file_name(text: str) -> str:
    """The name of something as one part of a path: at most 200 bytes that can be printed; names
    that would be the same then have a digest.
    """
    plain = text.replace("/", "_").replace(":", "_")
    plain = "".join(c if c.isprintable() else "_" for c in plain)
    if not plain.strip("."):
        plain = f"_{plain}"
    doubtful = plain != text and ("_" in text or text.count(":") > 1)
    if not doubtful and len(plain.encode()) <= LONGEST_NAME:
        return plain
    digits = short_hash(text)
    while len(plain.encode()) > LONGEST_NAME - len(digits) - 1:
        plain = plain[:-1]
    return f"{plain}-{digits}"


class Resolver:
    """What names stand for, looked up once: methods, protocols, and the JSON of their specs."""

    def __init__(self) -> None:
        # by kind, name and seed: an attack's own chance is the cell's, where no seed is given
        self._methods: dict[tuple[str, str, int], Any] = {}
        self._texts: dict[tuple[str, str, int, bool], str] = {}
        # a protocol is kept with what was made of it: its id must not be given to another one
        self._rules: dict[tuple[int, str], tuple[Protocol, Protocol, str]] = {}

    @classmethod
    def kept(cls, folder: Path) -> Resolver:
        """What ``keep`` wrote into a folder, if the code is still the same: names are then looked
        up without importing any method, nor PyTorch.
        """
        resolver = cls()
        try:
            content = json.loads((folder / SPECS).read_bytes())
            if content["code"] == registry.fingerprint():
                resolver._texts = {
                    (kind, name, seed, bool(part)): text
                    for kind, name, seed, part, text in content["texts"]
                }
        except (OSError, ValueError, KeyError, TypeError):
            # nothing was kept, or nothing that could be used: names are looked up anew
            return cls()
        return resolver

    def keep(self, folder: Path) -> None:
        """Write the specs of all names, but of those whose spec depends on files elsewhere."""
        for key in list(self._methods):
            self.text(*key)
        texts = [[*key, text] for key, text in self._texts.items() if ":" not in key[1]]
        content = {"code": registry.fingerprint(), "texts": texts}
        write_text(folder / SPECS, json.dumps(content, indent=1) + "\n")

    def method(self, kind: str, text: str, seed: int = 0) -> Any:
        """The attack or defense of a name; ``seed``: the cell's, for an attack.

        Raises:
            InputError: as ``registry.create``.
        """
        key = (kind, text, seed)
        if key not in self._methods:
            made = registry.create(kind, text)
            self._methods[key] = made.seeded(seed) if kind == "attacks" else made
        return self._methods[key]

    def spec(self, kind: str, text: str, seed: int = 0, training: bool = False) -> dict[str, Any]:
        """The spec of a name, or, of a defense, the part of it that decides the training."""
        method = self.method(kind, text, seed)
        spec = method.training_spec() if training else method.spec()
        return {"name": registry.parse(text)[0], **spec}

    def text(self, kind: str, text: str, seed: int = 0, training: bool = False) -> str:
        """``spec`` as JSON."""
        key = (kind, text, seed, training)
        if key not in self._texts:
            self._texts[key] = json.dumps(self.spec(*key), sort_keys=True)
        return self._texts[key]

    def rules(self, protocol: Protocol, dataset: str) -> tuple[Protocol, str]:
        """The protocol as it holds for a data set, and its spec as JSON."""
        key = (id(protocol), dataset)
        if key not in self._rules:
            rules = protocol.on(dataset)
            self._rules[key] = (protocol, rules, json.dumps(rules.spec(), sort_keys=True))
        return self._rules[key][1:]


def matching(paths: Iterable[Path], only: str, what: str, hint: str) -> set[Path]:
    """The paths that contain each word of ``only``. A ``|`` stands between words that may be met in
    place of others.

    Raises:
        InputError: words that no path has, told by ``what`` has none and the ``hint``.
    """
    texts = {path: str(path) for path in paths}
    wanted: set[Path] = set()
    for words in only.split("|"):
        found = {path for path, text in texts.items() if all(w in text for w in words.split())}
        if not found or ("|" in only and not words.strip()):
            raise InputError(f"no {what} has {words.strip()!r} in its path; {hint}")
        wanted |= found
    return wanted


@dataclass(frozen=True)
class Cell:
    """One run: a data set, an attack, a defense, a poisoning rate and a seed under a protocol.

    What its names stand for is looked up when it is asked for, and kept.
    """

    dataset: str
    attack: str
    defense: str
    rate: float
    seed: int
    protocol: Protocol

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which resolve the names themselves."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def names(self) -> dict[str, str]:
        """The names of its data set, attack and defense: what a record calls its cell."""
        return {"dataset": self.dataset, "attack": self.attack, "defense": self.defense}

    def __str__(self) -> str:
        what = f"{self.dataset} {self.attack} {self.defense}"
        return f"{what} rate {self.rate:g} seed {self.seed}"

    @cached_property
    def resolver(self) -> Resolver:
        """Shared by the cells of a suite."""
        return Resolver()

    def method(self, kind: str) -> Any:
        """The attack ("attacks", not fitted yet) or the defense ("defenses") as an object."""
        if kind == "attacks":
            return self.resolver.method(kind, self.attack, self.seed)
        return self.resolver.method(kind, self.defense)

    @property
    def rules(self) -> Protocol:
        """The protocol as it holds for the data set."""
        return self.resolver.rules(self.protocol, self.dataset)[0]

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides the result, every default written out."""
        return {
            "dataset": self.dataset,
            "attack": self.resolver.spec("attacks", self.attack, self.seed),
            "defense": self.resolver.spec("defenses", self.defense),
            "rate": self.rate,
            "seed": self.seed,
            "protocol": self.rules.spec(),
        }

    @cached_property
    def key(self) -> str:
        """The digest of all that decides the trained network: equal ones share one training."""
        return short_hash(self._text(training=True))

    @cached_property
    def path(self) -> Path:
        """Where the record lies, below the folder of the suite."""
        return self.place / f"{self.stem}-{short_hash(self._text())}.json"

    @property
    def place(self) -> Path:
        """The folder of its record, by its names alone."""
        return Path(*map(file_name, (self.dataset, self.attack, self.defense)))

    @property
    def stem(self) -> str:
        """How the name of its record's file begins."""
        return f"rate{self.rate:g}-seed{self.seed}"

    def _text(self, training: bool = False) -> str:
        """The JSON of the spec, put together from parts that many cells share."""
        parts = {
            "attack": self.resolver.text("attacks", self.attack, self.seed),
            "dataset": json.dumps(self.dataset),
            "defense": self.resolver.text("defenses", self.defense, training=training),
            "protocol": self.resolver.rules(self.protocol, self.dataset)[1],
            "rate": json.dumps(self.rate),
            "seed": json.dumps(self.seed),
        }
        return "{" + ", ".join(f'"{name}": {text}' for name, text in parts.items()) + "}"


@dataclass(frozen=True)
class Suite:
    """A grid, read as data sets x attacks x defenses x rates x seeds.

    ``own_rates``: attack -> its poisoning rate in place of ``rates``, for clean-label attacks,
    which have only the target class to poison. ``leave_out``: pairs of a data set, an attack or a
    defense that are not run together. ``audit``: its cells are there to be looked into, ``bbx run
    --audit`` or not. ``reported`` holds published numbers, in percent, by (dataset, attack,
    defense, rate): {"ca": ..., "asr": ..., "arr": ...}.
    """

    name: str
    protocol: Protocol
    datasets: tuple[str, ...]
    attacks: tuple[str, ...]
    defenses: tuple[str, ...]
    rates: tuple[float, ...] = (0.1,)
    seeds: tuple[int, ...] = (0,)
    own_rates: Mapping[str, float] = field(default_factory=dict)
    leave_out: tuple[tuple[str, str], ...] = ()
    audit: bool = False
    reported: Mapping[tuple[str, str, str, float], Mapping[str, float]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        """Raises: InputError: a name that is no part of a path, or an axis without values."""
        # the name is a folder below --out, wherever a suite comes from
        if file_name(self.name) != self.name or not self.name:
            raise InputError(f"a suite cannot be called {self.name!r}: its results are a folder")
        for axis in AXES:
            values = getattr(self, axis)
            if not values:
                raise InputError(f"suite {self.name!r} has no {axis}")
            if any(category(letter) == "Cc" for value in values for letter in str(value)):
                raise InputError(f"suite {self.name!r}: control characters in its {axis}")

    def cells(self, only: str = "", resolver: Resolver | None = None) -> list[Cell]:
        """The cells whose path contains what ``only`` says (as ``matching``), those that share a
        training beside each other. ``resolver``: what looks their names up, a new one unless told.

        Raises:
            InputError: an unknown name or option, a network that timm does not know, or words that
                no cell has.
        """
        if self.protocol.model not in NETWORKS:
            from . import models

            models.check(self.protocol.model)
        cells = self.unresolved(resolver)
        hint = f"`bbx run {self.name} --dry-run` shows them"
        wanted = matching([cell.path for cell in cells], only, f"cell of {self.name}", hint)
        kept = [cell for cell in cells if cell.path in wanted]
        order = {cell.key: i for i, cell in reversed(list(enumerate(kept)))}
        return sorted(kept, key=lambda cell: order[cell.key])

    def unresolved(self, resolver: Resolver | None = None) -> list[Cell]:
        """The cells in the grid's order, none of whose names need be known here."""
        resolver = resolver or Resolver()
        cells = []
        for dataset, (attack, rate), defense, seed in self._grid():
            cell = Cell(dataset, attack, defense, rate, seed, self.protocol)
            vars(cell)["resolver"] = resolver
            cells.append(cell)
        return cells

    def known(self) -> list[Cell]:
        """The cells whose names mean something here: a plugin may not be at hand."""
        return [cell for cell in self.unresolved() if _resolves(cell)]

    def _grid(self) -> Iterator[tuple[str, tuple[str, float], str, int]]:
        """Data set, attack with its rate, defense and seed of every cell."""
        rows = [
            (attack, rate)
            for attack in self.attacks
            for rate in ((self.own_rates[attack],) if attack in self.own_rates else self.rates)
        ]
        apart = [set(pair) for pair in self.leave_out]
        for dataset, row, defense, seed in product(self.datasets, rows, self.defenses, self.seeds):
            if not any({dataset, row[0], defense} >= pair for pair in apart):
                yield dataset, row, defense, seed

    def changed(
        self,
        *,
        epochs: int | None = None,
        model: str | None = None,
        target: int | None = None,
        seeds: tuple[int, ...] = (),
        rates: tuple[float, ...] = (),
        scale: float | None = None,
    ) -> Suite:
        """The same grid under other terms; its cells then have specs, and so records, of their own.
        ``rates`` hold for every attack.
        """
        if scale is not None:
            return self._scaled(scale).changed(
                epochs=epochs, model=model, target=target, seeds=seeds, rates=rates
            )
        if epochs is not None and epochs < 1:
            raise InputError(f"epochs must be at least 1, not {epochs}")
        told: dict[str, Any] = {"epochs": epochs, "model": model, "target": target}
        changes = {name: value for name, value in told.items() if value is not None}
        words = [f"epochs{epochs}"] if epochs else []
        if model:
            words.append(file_name(model))
        if target is not None:
            words.append(f"target{target}")
        return replace(
            self,
            name="-".join([self.name, *words]),
            protocol=_changed(self.protocol, changes) if changes else self.protocol,
            seeds=seeds or self.seeds,
            rates=rates or self.rates,
            own_rates={} if rates else self.own_rates,
        )

    @property
    def scale(self) -> str:
        """The share of images and epochs, "" of a whole grid: numbers of parts do not compare."""
        return self.protocol.name.partition(SCALED)[2]

    def _scaled(self, scale: float) -> Suite:
        """A share of the training set, of the protocol's epochs, and of the lengths that methods
        have of their own.
        """
        if not 0 < scale <= 1:
            raise InputError(f"scale must lie in (0, 1], not {scale:g}")
        if scale == 1:
            return self
        datasets = {text: _smaller(text, scale) for text in self.datasets}
        attacks = {text: _shorter("attacks", text, scale) for text in self.attacks}
        defenses = {text: _shorter("defenses", text, scale) for text in self.defenses}
        names = datasets | attacks | defenses
        reported = {
            (names.get(d, d), names.get(a, a), names.get(f, f), rate): numbers
            for (d, a, f, rate), numbers in self.reported.items()
        }

        def shorter(fields: Mapping[str, Any]) -> dict[str, Any]:
            if "recipe" not in fields:
                return dict(fields)
            recipe = fields["recipe"]
            epochs = max(1, round(scale * recipe.epochs))
            return {**fields, "recipe": replace(recipe, epochs=epochs)}

        protocol = replace(
            self.protocol,
            name=f"{self.protocol.name}{SCALED}{scale:g}",
            overrides={name: shorter(own) for name, own in self.protocol.overrides.items()},
            **shorter({"recipe": self.protocol.recipe}),
        )
        return replace(
            self,
            name=f"{self.name}-scale{scale:g}",
            protocol=protocol,
            datasets=tuple(datasets.values()),
            attacks=tuple(attacks.values()),
            defenses=tuple(defenses.values()),
            own_rates={attacks[a]: rate for a, rate in self.own_rates.items()},
            leave_out=tuple((names[a], names[b]) for a, b in self.leave_out),
            reported=reported,
        )

    def joined(self, folder: Path, axes: Sequence[str] = RUNS) -> Suite:
        """With the values that the grid of ``folder`` has on ``axes``, if it is of the same
        protocol: what ran there before stays in the tables.
        """
        if not (folder / FILE).exists():
            return self
        before = _read(folder / FILE)
        # what a protocol says of other data sets does not matter
        sets = {*before.datasets, *self.datasets}
        same = all(before.protocol.on(name) == self.protocol.on(name) for name in sets)
        if not same or before.own_rates != self.own_rates:
            return self
        both: dict[str, Any] = {
            axis: tuple(dict.fromkeys((*getattr(before, axis), *getattr(self, axis))))
            for axis in axes
        }
        return replace(self, **both)

    def save(self, folder: Path, axes: Sequence[str] = ()) -> Suite:
        """Write the grid and the protocol as ``suite.json``, so that tables and plots of a folder
        need no Python file, and beside it what the names stand for.

        Args:
            axes: on which the grid is joined with the one that is there, which another run may
                have written meanwhile.

        Returns:
            What was written.
        """
        with locked(folder / ".state" / FILE):
            whole = self.joined(folder, axes)
            whole._write(folder)
        return whole

    def _write(self, folder: Path) -> None:
        grid = asdict(self) | {
            "reported": [[*key, dict(value)] for key, value in self.reported.items()]
        }
        write_text(folder / FILE, json.dumps(grid, indent=1, sort_keys=True) + "\n")
        # what an earlier run had from a plugin that is not at hand cannot be looked up
        with suppress(InputError):
            self.cells()[0].resolver.keep(folder)


def _resolves(cell: Cell) -> bool:
    try:
        return bool(cell.path)
    except InputError:
        return False


def _changed(protocol: Protocol, changes: Mapping[str, Any]) -> Protocol:
    """A protocol with other ``epochs``, another ``model`` or ``target``, for every data set."""

    def change(fields: Mapping[str, Any]) -> dict[str, Any]:
        made = {name: changes.get(name, value) for name, value in fields.items()}
        if "recipe" in made and "epochs" in changes:
            made["recipe"] = replace(made["recipe"], epochs=changes["epochs"])
        return made

    own = {name: getattr(protocol, name) for name in ("recipe", "model", "target")}
    return replace(
        protocol,
        name=f"{protocol.name} (changed)",
        overrides={name: change(fields) for name, fields in protocol.overrides.items()},
        **change(own),
    )


def _smaller(dataset: str, scale: float) -> str:
    """A data set's name with a share of its training images."""
    name, options = registry.parse(dataset)
    train = options.get("train", 1.0)
    options["train"] = max(1, round(scale * train)) if type(train) is int else scale * train
    return registry.join(name, options)


def _shorter(kind: str, text: str, scale: float) -> str:
    """A method's name with a share of the lengths that are its own."""
    name, options = registry.parse(text)
    method = registry.create(kind, text)
    for f in fields(method):
        length = getattr(method, f.name)
        if f.metadata.get("length") and length is not None:
            options[f.name] = max(int(f.metadata.get("low") or 0), round(scale * length))
    return registry.join(name, options)


def is_results(name: str) -> bool:
    """Whether a name means a folder of results: a benchmark of that name goes first."""
    return name not in registry.modules("benchmarks") and Path(name).is_dir()


def load(name: str) -> Suite:
    """The suite of a benchmark's name, of a ``.py`` file, or of a folder of results.

    Raises:
        InputError: no such benchmark, its file defines no ``SUITE``, or the folder holds no
            readable ``suite.json``.
    """
    if is_results(name):
        return _read(Path(name) / FILE)
    if name.endswith(".py"):
        registry.add_file(Path(name))
        name = Path(name).stem
    suite = getattr(registry.module("benchmarks", name), "SUITE", None)
    if not isinstance(suite, Suite):
        raise InputError(f"benchmark {name!r} defines no SUITE")
    return suite


def _read(file: Path) -> Suite:
    grid: dict[str, Any] = parsed(file, dict[str, Any])
    try:
        given = msgspec.convert(grid.pop("reported"), Reported)
        reported = {(d, a, f, rate): numbers for d, a, f, rate, numbers in given}
        suite: Suite = msgspec.convert(grid, Suite)
        protocol = suite.protocol
        overrides = {name: _fields(protocol, own) for name, own in protocol.overrides.items()}
        return replace(suite, protocol=replace(protocol, overrides=overrides), reported=reported)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not a suite of results ({told(error)})") from error


def _fields(protocol: Protocol, own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a protocol that differ, as they were before JSON."""
    whole = {f.name: getattr(protocol, f.name) for f in fields(protocol)} | dict(own)
    made = msgspec.convert({**whole, "recipe": whole["recipe"], "overrides": {}}, Protocol)
    return {name: getattr(made, name) for name in own}

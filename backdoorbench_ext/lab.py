"""One cell on its device: its images, its attack, what is poisoned, its engine; each made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from . import datasets, models, registry, weights
from .api import Attack, Defense
from .devices import pick_device
from .engine import Audit, EachBatch, Engine, Log, Progress, apart, check_per_class, seed_of
from .errors import InputError
from .images import Images, Poisoned, spread, unmarked
from .options import Options
from .sharing import once
from .suite import Cell, digest, file_name


@lru_cache(maxsize=1)
def load(dataset: str, data: Path | None, download: bool) -> datasets.Splits:
    """The clean images of a data set, those of the last one kept."""
    return datasets.load(dataset, data, download=download)


@lru_cache(maxsize=64)
def _data_digest(dataset: str, data: Path | None, download: bool) -> str:
    return datasets.digest(load(dataset, data, download))


def data_digest(cell: Cell, options: Options) -> str:
    """The digest of a cell's clean images: files may change behind a name."""
    return _data_digest(cell.dataset, options.data, options.download)


def hold_out(train: Images, share: float, seed: int) -> Tensor:
    """Who is held back as the clean reserve, the same share of every class: bool (n,)."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(train), dtype=torch.bool)
    for label in range(len(train.classes)):
        own = order[train.y[order] == label]
        held[own[: round(share * len(own))]] = True
    return held


class Lab:
    """All that a cell is made of; nothing is read, learned or poisoned before it is asked for.

    Args:
        cell: the cell.
        options: where and how to run.
        progress: as ``Engine`` calls it, of what the attack learns and of the training.
    """

    def __init__(self, cell: Cell, options: Options, progress: Progress | None = None) -> None:
        self.cell = cell
        self.options = options
        self.progress = progress
        self.rules = cell.rules
        if options.weights:
            weights.offer(options.weights)

    @cached_property
    def device(self) -> torch.device:
        """Where everything lives."""
        return pick_device(self.options.device)

    @property
    def clean(self) -> datasets.Splits:
        """The data set's training and test images, on the CPU."""
        return load(self.cell.dataset, self.options.data, self.options.download)

    @cached_property
    def held(self) -> Tensor:
        """Which training images are the clean reserve: bool (n,), on the CPU."""
        train = self.clean[0]
        brought = self._unfitted.holds(len(train))
        if brought is not None:
            return brought
        return hold_out(train, self.rules.reserve, seed_of(self.cell.seed, "reserve"))

    @cached_property
    def reserve(self) -> Images:
        """The clean images that a defense may be given."""
        return self.clean[0][self.held].to(self.device)

    @cached_property
    def train(self) -> Images:
        """The clean training images without the reserve."""
        return self.clean[0][~self.held].to(self.device)

    @cached_property
    def test(self) -> Images:
        """The clean test images."""
        return self.clean[1].to(self.device)

    def check(self) -> None:
        """Say what can be said of the cell without training.

        Raises:
            InputError: data that cannot be read, a trigger that does not fit, a rate that the pool
                cannot give, too few clean images, a network that does not take the images.
        """
        cell, rules, train = self.cell, self.rules, self.clean[0]
        held = train.y[self.held]
        defense = self.defense
        needed = 1 if defense.clean_images is None else defense.clean_images
        if needed > len(held):
            share = f"{100 * rules.reserve:g} % of {cell.dataset}"
            raise InputError(
                f"{cell.defense} needs {needed} clean images, but the protocol's reserve "
                f"({share}) holds {len(held)}"
            )
        if defense.clean_per_class:
            counts = held.bincount(minlength=len(train.classes)).tolist()
            check_per_class(counts, defense.clean_per_class, train.classes, rules)
        models.check_use(rules.model, len(train.classes), *train.x.shape[2:])
        models.check_recipe(rules.model, rules.recipe)
        if type(defense).check is not Defense.check:
            net = models.Net(rules.model, len(train.classes)).eval()
            try:
                defense.check(net, torch.rand(2, *train.x.shape[1:]))
            except InputError as error:
                raise InputError(f"{cell.defense} with {rules.model}: {error}") from error
        if self._unfitted.trains_itself and not defense.after_training:
            raise InputError(
                f"{cell.attack} controls the training: {cell.defense}, which trains on a poisoned "
                "set, has nothing to train on"
            )
        first = train.x[(~self.held).nonzero()[0]]
        # the choice needs labels alone
        rest = Images(first, train.y[~self.held], train.classes)
        attack = self._unfitted
        try:
            attack.check(first.float() / 255)
            if not attack.supplies:
                self._chosen(attack, rest)
        except InputError as error:
            raise InputError(f"{cell.attack} on {cell.dataset}: {error}") from error

    def _chosen(self, attack: Attack, rest: Images) -> tuple[Tensor, Tensor]:
        rules = self.rules
        return attack.choose(
            rest,
            target=rules.target,
            rate=self.cell.rate,
            rng=torch.Generator(),
            spare_target=rules.spare_target,
        )

    def shared(self, name: str, *keys: str, **more: str) -> Path:
        """The file of something that all cells share in which data set, protocol, seed, ``keys`` of
        the spec and ``more`` are equal.
        """
        spec = self.cell.spec | {"data": data_digest(self.cell, self.options)}
        common = ("dataset", "data", "protocol", "seed", *keys)
        key = digest({part: spec[part] for part in common} | more)
        return self.options.out / ".shared" / f"{file_name(name)}-{key}.safetensors"

    @property
    def _attack_name(self) -> str:
        return registry.parse(self.cell.attack)[0]

    def _assistant(self, purpose: str, file: Path, victim: Path | None = None) -> Engine:
        """The engine of what an attack learns, from images that are all clean."""
        return Engine(
            self.rules,
            self.train,
            seed=seed_of(self.cell.seed, purpose),
            device=self.device,
            state=file.with_suffix(".state"),
            progress=self.progress,
            victim=victim,
        )

    @property
    def defense(self) -> Defense:
        """The defense."""
        defense: Defense = self.cell.method("defenses")
        return defense

    @property
    def _unfitted(self) -> Attack:
        attack: Attack = self.cell.method("attacks")
        return attack

    @cached_property
    def attack(self) -> Attack:
        """The attack, which has learned its trigger."""
        attack = self._unfitted
        if not attack.learns:
            return attack
        return attack.fitted(self._learned[0])

    @property
    def attack_book(self) -> Log:
        """What the attack told while it learned its trigger."""
        return self._learned[1] if self._unfitted.learns else Log()

    @cached_property
    def _learned(self) -> tuple[dict[str, Tensor], Log]:
        file = self.shared(self._attack_name, "attack")

        def learn() -> Mapping[str, Tensor]:
            engine = self._assistant("attack", file, victim=self.shared("clean"))
            return {**self._unfitted.fit(self.train, engine), **engine.log_book.tensors()}

        return apart(once(file, self.device, learn))

    @property
    def poisoned(self) -> Poisoned:
        """The poisoned training set."""
        return self._sets[0]

    @property
    def triggered(self) -> Poisoned:
        """The test images that ASR and ARR count."""
        return self._sets[1]

    @cached_property
    def _sets(self) -> tuple[Poisoned, Poisoned]:
        rng = torch.Generator().manual_seed(seed_of(self.cell.seed, "poison"))
        if self._unfitted.supplies:
            return self._supplied(rng)
        attack = self.attack
        if attack.per_batch:
            return unmarked(self.train), attack.test_set(self.test, self.rules.target)
        poisoned = attack.poison(
            self.train,
            target=self.rules.target,
            rate=self.cell.rate,
            rng=rng,
            spare_target=self.rules.spare_target,
        )
        if attack.refines:
            file = self.shared(f"{self._attack_name}-poisoned", "attack", "rate")

            def refine() -> Mapping[str, Tensor]:
                return {"x": attack.refine(self.train, poisoned, self._assistant("refine", file))}

            poisoned.x[poisoned.mask] = once(file, self.device, refine)["x"]
        return poisoned, attack.test_set(self.test, self.rules.target)

    @property
    def _supplies(self) -> Path:
        """The folder of an attack that has its images from elsewhere."""
        return self.shared(self._attack_name, "attack", "rate").with_suffix("")

    def _supplied(self, rng: torch.Generator) -> tuple[Poisoned, Poisoned]:
        """Images that an attack has from elsewhere."""
        train, test = self.clean
        poisoned, triggered = self.attack.supply(
            train,
            test,
            self.held,
            target=self.rules.target,
            rate=self.cell.rate,
            rng=rng,
            folder=self._supplies,
            model=self.rules.model,
        )
        return poisoned.to(self.device), triggered.to(self.device)

    @cached_property
    def poison_digest(self) -> str:
        """What the attack made of the images, poisoned, cover and triggered test ones: a trigger
        that is learned anew, elsewhere, is another one.
        """
        changed = self.poisoned[self.poisoned.mask | self.poisoned.cover]
        return datasets.digest((changed, self.triggered))

    @cached_property
    def victim_file(self) -> Path:
        """Where the network lies that was trained without defense on these images.

        ``Engine.victim`` makes it, unless the attack brings it with its images.
        """
        file = self.shared("victim", "attack", "rate", poison=self.poison_digest)
        if self.attack.supplies:
            bare = Engine(self.rules, self.poisoned.observed(), device=self.device).new_model()
            state = self.attack.victim(bare, self._supplies)
            if state is not None:
                once(file, self.device, lambda: {**state, **Log().tensors()})
        return file

    def engine(self, state: Path | None = None) -> Engine:
        """The engine that the defense is given, at the beginning of its chance.

        Args:
            state: folder in which the training keeps its state, to go on from after a kill.
        """
        return Engine(
            self.rules,
            self.poisoned.observed(),
            self.reserve,
            seed=seed_of(self.cell.seed, "training"),
            device=self.device,
            state=state,
            victim=self.victim_file,
            progress=self.progress,
            compile=self.options.compile,
            audit=self._audit() if self.options.audit else None,
            each_batch=self._each_batch(),
            tests=(self.test, self.triggered) if self.defense.sees_tests else None,
        )

    def _each_batch(self) -> EachBatch | None:
        if not self.attack.per_batch:
            return None
        return partial(
            self.attack.poison_batch,
            target=self.rules.target,
            rate=self.cell.rate,
            classes=len(self.train.classes),
        )

    def _audit(self) -> Audit:
        """500 training images of each sort, and 1,000 test images and 1,000 triggered ones."""
        poisoned = self.poisoned
        sorts = {"clean": ~poisoned.mask & ~poisoned.cover, "poisoned": poisoned.mask}
        train = poisoned.observed()
        seen = {
            name: train[own.nonzero().flatten()[:500]] for name, own in sorts.items() if own.any()
        }
        rng = torch.Generator().manual_seed(seed_of(self.cell.seed, "audit"))
        clean, bad = (
            torch.randperm(len(images), generator=rng)[:1000]
            for images in (self.test, self.triggered)
        )
        return Audit(seen, self.test[clean], self.triggered[bad])

    def specimen(self) -> tuple[Images, Images]:
        """Up to 500 images before and after the attack, the same ones for every attack: test
        images from first to last, as folders are sorted by class, or training images where those
        are more than triggered.
        """
        if self.attack.refines or self.attack.supplies:
            index = self.poisoned.mask.nonzero().flatten()[:500]
            return self.train[index].to("cpu"), self.poisoned[index].to("cpu")
        clean = self.test[spread(500, len(self.test))]
        return clean.to("cpu"), replace(clean, x=self.attack.stamp(clean.x)).to("cpu")

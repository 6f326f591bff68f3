"""Every training loop and the one evaluation; precision, saved state and chance live here."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augmentation import augment
from .devices import has_bf16, one_pixel_strides
from .errors import InputError
from .files import write_whole
from .graphs import Replayed, allowed
from .images import Images, Poisoned, per_part
from .models import Net, norms
from .protocols import Protocol as Rules
from .protocols import Recipe
from .reading import regular
from .sharing import dropped, once

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Item = TypeVar("Item")
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
# (what, how many done, how many in all)
Progress = Callable[[str, int, int], None]
# (images uint8, labels, chance) -> the same, some of them poisoned
EachBatch = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]

# the share of a training's time that may go into saving its state
SAVING = 0.05
# pixels of the training images that a network may start from: 2,048 images of 32 pixels
STARTING = 2**21


class Stateful(Protocol):
    """What a loop changes and a killed run must find again: a module, an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Diverged(RuntimeError):
    """A loss was not finite: the cell ends without a result."""


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of a batch: x float (n, 3, h, w), y int64 (n,)."""
    return F.cross_entropy(net(x), y)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step of the optimizer down a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of images uint8 (n, 3, h, w), on the scale of 0
    to 1, float (3,) each; from the counts of the 256 values, which take no memory.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    channels = [x[:, c].flatten().bincount(minlength=256) for c in range(x.shape[1])]
    counts = torch.stack(channels).cpu().double()
    n = counts.sum(1)
    mean = counts @ values / n
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (n - 1)
    return mean.float(), variance.sqrt().float()


def seed_of(*parts: Any) -> int:
    """A seed that depends on every part, and on nothing else."""
    return int.from_bytes(
        hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:6], "big"
    )


def check_per_class(held: list[int], n: int, classes: tuple[str, ...], rules: Rules) -> None:
    """Raises:
    InputError: fewer than ``n`` clean images are held of a class.
    """
    if min(held) < n:
        least = f"{min(held)} of class {classes[held.index(min(held))]!r}"
        raise InputError(
            f"{n} clean images of each class are asked for, but the protocol's reserve holds "
            f"{least}: raise its share ({rules.reserve:g})"
        )


@dataclass
class Log:
    """What a training tells about itself: curves by name (one number an epoch), seconds by stage,
    images trained on, clean images given, scores of the training images by name.
    """

    curves: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0
    clean_given: int = 0
    # scores (n,), and bool (n,): who is flagged and who is poisoned, if that is said
    suspects: dict[str, tuple[Tensor, Tensor | None, Tensor | None]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The curves, all seconds and the images, to lie in a file beside what was learned."""
        told: dict[str, Any] = {f"log.curve.{name}": own for name, own in self.curves.items()}
        told |= {"log.seconds": sum(self.seconds.values()), "log.images": self.images}
        return {name: torch.tensor(number, dtype=torch.float64) for name, number in told.items()}


def apart(kept: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Log]:
    """What was learned, and what ``Log.tensors`` has put beside it."""
    learned = {name: value for name, value in kept.items() if not name.startswith("log.")}
    book = Log()
    for name, value in kept.items():
        curve = name.removeprefix("log.curve.")
        if curve != name:
            book.curves[curve] = value.tolist()
    if "log.images" in kept:
        book.seconds["train"] = float(kept["log.seconds"])
        book.images = int(kept["log.images"])
    return learned, book


@dataclass(frozen=True, eq=False)
class Audit:
    """What a training is looked at with after every epoch of a classifier; the method sees nothing
    of it.

    Args:
        seen: training images by name, whose cross-entropy is logged.
        test, triggered: test images as ``Engine.measure`` takes them, of which CA, ASR and ARR are
            logged in percent.
    """

    seen: Mapping[str, Images]
    test: Images
    triggered: Poisoned


@dataclass(eq=False)
class Step:
    """One step of a training loop.

    Args:
        x: the batch, float (n, 3, h, w) in [0, 1]; empty where the loop has data of its own.
        y: its labels, int64 (n,).
        done: steps taken before this one, of ``total``.
        per_epoch: steps an epoch.
        loss: what the body sets, a scalar, for the curve; None for none.
    """

    x: Tensor
    y: Tensor
    done: int
    total: int
    per_epoch: int
    loss: Tensor | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the step belongs to, from 0."""
        return self.done // self.per_epoch

    @property
    def first(self) -> bool:
        """Whether it is the first of its epoch."""
        return self.done % self.per_epoch == 0

    @property
    def last(self) -> bool:
        """Whether it is the last of its epoch, or of all."""
        return (self.done + 1) % self.per_epoch == 0 or self.done + 1 == self.total

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor | None = None) -> None:
        """Take a step of the optimizer down ``loss``, the one that was set unless told."""
        loss = self.loss if loss is None else loss
        assert loss is not None, "set step.loss first"
        descend(optimizer, loss)

    def follow(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        slopes: Sequence[Tensor],
    ) -> None:
        """Take a step of the optimizer along slopes of one's own, one a weight of the same shape.

        They are laid out in memory as the weights are: fused optimizers count on it, unasked.
        """
        for weight, slope in zip(weights, slopes, strict=True):
            weight.grad = torch.empty_like(weight).copy_(slope)
        optimizer.step()


class _Epoch:
    """What adds up over an epoch; the losses stay on the device, which nobody waits for."""

    def __init__(self, device: torch.device) -> None:
        self.start = time.perf_counter()
        self.sum = torch.zeros((), device=device)
        self.losses = 0
        self.images = 0

    def add(self, step: Step, images: int) -> None:
        self.images += images
        if step.loss is not None:
            self.sum += step.loss.detach()
            self.losses += 1

    def mean(self) -> float | None:
        return float(self.sum) / self.losses if self.losses else None


def _by_share(net: nn.Module, decay: float) -> dict[float, list[nn.Parameter]]:
    """The parameters with gradients by their share of the learning rate, which gets smaller by the
    factor ``decay`` a layer down from the last one of the network that they belong to.
    """
    shares: dict[str, float] = {}
    if decay < 1:
        for place, own in net.named_modules():
            if isinstance(own, Net):
                layers = own.layers()
                last = max(layers.values())
                start = f"{place}." if place else ""
                shares |= {start + name: decay ** (last - at) for name, at in layers.items()}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(shares.get(name, 1.0), []).append(parameter)
    return groups


def _made(recipe: Recipe, groups: list[dict[str, Any]], capturable: bool) -> torch.optim.Optimizer:
    """The optimizer of a recipe; ``capturable``: its steps can be recorded."""
    decay = recipe.weight_decay
    if recipe.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, weight_decay=decay, capturable=capturable)
    if recipe.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, weight_decay=decay, fused=True, capturable=capturable)
    return torch.optim.SGD(
        groups,
        momentum=recipe.momentum,
        weight_decay=decay,
        nesterov=recipe.nesterov,
        fused=True,
    )


class Engine:
    """Builds, trains and evaluates networks for one method; all of its chance comes from ``seed``.

    Args:
        rules: the protocol, resolved for the data set.
        train: the images trained on, as a defense sees them.
        reserve: clean images that were held out of the training set, if any.
        seed: of initialisation, order, augmentation and dropout.
        device: where everything lives.
        state: folder for the state of the training; with it a killed run goes on where it was, to
            the same result. It is saved after every epoch, or less often where that would take more
            than a twentieth of the time.
        progress: called after every epoch, and after every item of ``track``.
        victim: file of the network that ``victim`` returns, shared by all that ask for the same.
        compile: mode of ``torch.compile`` for plain training, "" for none; losses of a method's own
            are never compiled.
        audit: logged after every epoch of a classifier, and nothing else changes.
        each_batch: what an attacker who controls the training of the victim does to its batches.
        tests: clean and triggered test images, for defenses that say ``sees_tests``.
    """

    def __init__(
        self,
        rules: Rules,
        train: Images,
        reserve: Images | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        state: Path | None = None,
        progress: Progress | None = None,
        victim: Path | None = None,
        compile: str = "",
        audit: Audit | None = None,
        each_batch: EachBatch | None = None,
        tests: tuple[Images, Poisoned] | None = None,
    ) -> None:
        self.rules = rules
        self.tests = tests
        self._each_batch = each_batch
        self._poisoning: EachBatch | None = None
        self.classes = train.classes
        self.seed = seed
        self.device = torch.device(device)
        self.bf16 = has_bf16(self.device)
        # whether steps that say so are recorded and replayed
        self.replays = allowed(self.device)
        self.log_book = Log()
        self.probes: dict[str, nn.Module | Callable[[Tensor], nn.Module]] = {}
        self.rng = torch.Generator().manual_seed(seed)
        self._reserve = reserve
        self._state = state
        self._progress = progress
        self._stage = 0
        self._train = train
        self._victim = victim
        self.compile = compile
        self._audit = audit
        self._recipes: WeakKeyDictionary[Any, Recipe] = WeakKeyDictionary()
        # when the state was last saved, and the seconds that it took
        self._saved = (0.0, 0.0)
        self._moments: tuple[Tensor, Tensor] | None = None
        if rules.normalise is True:
            self._moments = moments(train.x)
        elif rules.normalise:
            self._moments = torch.tensor(rules.normalise[0]), torch.tensor(rules.normalise[1])
        torch.manual_seed(seed)
        torch.backends.cudnn.benchmark = True

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and deviation a channel by which networks see images."""
        mean, std = self._moments or (torch.zeros(3), torch.ones(3))
        return mean.tolist(), std.tolist()

    def new_model(self, outputs: int | None = None) -> Net:
        """The protocol's network as trainings start, new or from the weights of its tag, with as
        many outputs as classes unless told.
        """
        mean, std = self._moments or (None, None)
        outputs = len(self.classes) if outputs is None else outputs
        net = Net(self.rules.model, outputs, mean, std, pretrained=True)
        if net.starts_from_images:
            every = math.ceil(len(self._train) / per_part(STARTING, self._train.x))
            net.to(self.device).start(self.to_float(self._train.x[:: every or 1]))
        if self.rules.recipe.frozen:
            net.freeze()
        if self.rules.recipe.recompute:
            net.recompute()
        net = self.move(net)
        if self.bf16 and self.device.type == "cpu":
            self.bf16 = not one_pixel_strides(net, self.to_float(self._train.x[:1]))
        return net

    def move(self, net: AnyModule) -> AnyModule:
        """A network of a method's own on the device, in the layout that convolutions like."""
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def victim(self, *, second: bool = False) -> Net:
        """The protocol's network trained without defense on the engine's images, in eval mode; for
        an attack's ``fit`` these are clean.

        It is trained once for all that ask, No Defense among them; its curve and cost go into the
        log of each.

        Args:
            second: another one, trained alike from another start.
        """
        file = self._victim
        if file and second:
            file = file.with_name(f"{file.stem}-second{file.suffix}")
        with self.aside():
            net = self.new_model()
            train = partial(self._train_victim, file, second)
            learned, book = apart(once(file, self.device, train))
            net.load_state_dict(learned)
        if not second:
            self.log_book.curves |= book.curves
        self.log_book.seconds["second victim" if second else "train"] = sum(book.seconds.values())
        self.log_book.images += book.images
        return net.eval()

    def _train_victim(self, file: Path | None, second: bool) -> dict[str, Tensor]:
        """The state of the victim, and under "log." what its training told."""
        state = self._state and self._state / ("second victim" if second else "victim")
        own = Engine(
            self.rules,
            self._train,
            seed=seed_of(self.seed, "second victim") if second else self.seed,
            device=self.device,
            state=file.with_suffix(".state") if file else state,
            progress=self._progress,
            compile=self.compile,
            audit=self._audit,
        )
        own._poisoning = self._each_batch
        own.replays = self.replays
        name = "second victim" if second else "train"
        trained = own.fit(own.new_model(), self._train, name=name).state_dict()
        return trained | own.log_book.tensors()

    def clean(self, n: int | None = None) -> Images:
        """``n`` clean images of the reserve, chosen at random, or all of it; the record says how
        many were given.

        Raises:
            InputError: the reserve holds fewer.
        """
        reserve = self._reserve
        share = f"raise its share ({self.rules.reserve:g})"
        if reserve is None or not len(reserve):
            raise InputError(
                f"clean images are asked for, but the protocol's reserve holds none: {share}"
            )
        held = len(reserve)
        n = held if n is None else n
        if not 0 < n <= held:
            raise InputError(
                f"{n} clean images are asked for, but the protocol's reserve holds {held}: {share}"
            )
        self.log_book.clean_given = max(self.log_book.clean_given, n)
        order = torch.Generator().manual_seed(seed_of(self.seed, "clean"))
        return reserve[torch.randperm(held, generator=order)[:n].to(self.device)]

    def clean_per_class(self, n: int) -> Images:
        """``n`` clean images of every class, chosen at random from the reserve; the record says how
        many were given.

        Raises:
            InputError: the reserve holds fewer of a class.
        """
        reserve = self._train[:0] if self._reserve is None else self._reserve
        order = torch.randperm(
            len(reserve), generator=torch.Generator().manual_seed(seed_of(self.seed, "clean"))
        ).to(self.device)
        places = [order[reserve.y[order] == label][:n] for label in range(len(self.classes))]
        check_per_class([len(own) for own in places], n, self.classes, self.rules)
        self.log_book.clean_given = max(self.log_book.clean_given, n * len(self.classes))
        return reserve[torch.cat(places)]

    def log(self, **numbers: float | Tensor) -> None:
        """Append one number to each of the named curves; tensors are waited for."""
        for name, number in numbers.items():
            self.log_book.curves.setdefault(name, []).append(float(number))

    def suspect(
        self,
        name: str,
        scores: Tensor,
        flagged: Tensor | None,
        poisoned: Tensor | None = None,
    ) -> None:
        """Tell how much each training image is suspected; the record says how well that finds the
        poisoned ones, and the defense never learns it.

        Args:
            scores: (n,), one a training image, high where it is suspected.
            flagged: bool (n,), the images that the method takes for poisoned; None if it does not
                say.
            poisoned: bool (n,), which are poisoned, for other images than the training set.
        """
        n = len(self._train) if poisoned is None else len(poisoned)
        assert scores.shape == (n,), f"one score for each of {n} images"
        assert flagged is None or flagged.shape == (n,), f"one flag for each of {n} images"
        self.log_book.suspects[name] = scores.detach().float(), flagged, poisoned

    def probe(self, name: str, net: nn.Module | Callable[[Tensor], nn.Module]) -> None:
        """Have another network than the result measured too, under ``name``, and its embeddings
        kept by ``--audit``; the defense never sees the outcome.

        A function is given 100 triggered test images, float (n, 3, h, w), when the defense is done,
        and returns the network.
        """
        self.probes[name] = net

    def track(self, items: Sequence[Item], name: str) -> Iterator[Item]:
        """The items one by one, for long work outside ``fit``: the progress bar of that name shows
        how far it is.
        """
        tell = self._progress or (lambda *_: None)
        try:
            for i, item in enumerate(items):
                tell(name, i, len(items))
                yield item
        # also where the loop ends early
        finally:
            tell(name, len(items), len(items))

    def aside(self) -> AbstractContextManager[Any]:
        """What is trained inside, with chance of its own, leaves the chance of what follows as it
        was.
        """
        # unless told, of every GPU there is, with a warning
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the device computes it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def to_float(self, x: Tensor) -> Tensor:
        """uint8 -> float in [0, 1], in the memory layout that convolutions like."""
        return x.to(self.device, torch.float32, memory_format=torch.channels_last).div_(255)

    def batches(
        self,
        images: Images,
        batch_size: int | None = None,
        *,
        train: bool = True,
        augmented: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the images as float batches (n, 3, h, w) in [0, 1] with their labels.

        ``train``: shuffled, ``augmented`` unless told, without the incomplete last batch; otherwise
        in order, as they are, all of them.
        """
        size = min(batch_size or self.rules.recipe.batch_size, len(images))
        order = (
            torch.randperm(len(images), generator=self.rng).to(self.device, non_blocking=True)
            if train
            else torch.arange(len(images), device=self.device)
        )
        for index in order.split(size):
            if train and len(index) < size:
                return
            x = images.pixels(index)
            y = images.y[index]
            if train and self._poisoning:
                x, y = self._poisoning(x, y, self.rng)
            yield self.view(x) if train and augmented else self.to_float(x), y

    def view(self, x: Tensor) -> Tensor:
        """A random augmentation of each of these uint8 images (n, 3, h, w), as the protocol has it:
        float in [0, 1].
        """
        return self.to_float(augment(x, self.rules, self.rng))

    def optimizer(self, net: nn.Module, recipe: Recipe | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer, the protocol's unless told, of the parameters with gradients.

        ``steps`` sets its learning rate by the recipe's schedule where it is among the ``keep``.
        """
        recipe = recipe or self.rules.recipe
        groups = []
        for share, own in _by_share(net, recipe.layer_decay).items():
            lr = recipe.lr * share
            # a graph reads the rate where it lies
            told = torch.full((), lr, device=self.device) if self.replays else lr
            groups.append({"params": own, "lr": told, "share": share})
        optimizer = _made(recipe, groups, capturable=self.replays)
        self._recipes[optimizer] = recipe
        return optimizer

    def steps(
        self,
        name: str,
        images: Images | None = None,
        *,
        keep: Sequence[Stateful],
        epochs: int | None = None,
        steps: int | None = None,
        of_epochs: int | None = None,
        per_epoch: int | None = None,
        recipe: Recipe | None = None,
        answers: Callable[[Tensor], nn.Module] | None = None,
        augmented: bool = True,
    ) -> Iterator[Step]:
        """The steps of a training loop; what they do is up to the loop's body.

        The machinery restores a killed run, times, checks the losses, logs, audits and saves. Let a
        loop run to its end: one that is left early keeps neither its curve nor its state.

        Args:
            name: what the progress bar and the curve of the loss are called.
            images: a step gets a batch of them; None where the body has data of its own.
            keep: the trained network first, then all else that the loop changes: modules,
                optimizers, anything with ``state_dict`` and ``load_state_dict``. The network is put
                in training mode when the loop begins, in evaluation mode when it ends.
            epochs: length, the recipe's unless told; ``steps`` counts it in batches instead.
            of_epochs: the loop is the beginning of a training of that length, whose schedule it
                follows; its own unless told.
            per_epoch: steps an epoch, needed without ``images``.
            recipe: gives the batch size and the length; the protocol's unless told.
            answers: the network that an audit measures in place of the first kept one, where that
                is not what will answer in the end; given 100 clean test images, float (n, 3, h, w).
            augmented: by the protocol's rules; otherwise images are taken as they are.

        Raises:
            Diverged: the mean of an epoch's losses is not finite.
        """
        recipe = recipe or self.rules.recipe
        if per_epoch is None:
            assert images is not None, "per_epoch is needed where no images are given"
            per_epoch = max(1, len(images) // recipe.batch_size)
        total = steps or (epochs or recipe.epochs) * per_epoch
        whole = max(total, of_epochs * per_epoch) if of_epochs else total
        file = self._state / f"{self._stage}-{name}.pt" if self._state else None
        self._stage += 1
        done = self._restore(file, keep)
        net = keep[0]
        assert isinstance(net, nn.Module), "the network comes first"
        net.train()
        while done < total:
            epoch = _Epoch(self.device)
            batches = self._passes(images, recipe, per_epoch, augmented)
            for x, y in itertools.islice(batches, total - done):
                self._schedule(keep, done / whole)
                step = Step(x, y, done, total, per_epoch)
                yield step
                done += 1
                epoch.add(step, images=len(y) or recipe.batch_size)
            number = -(-done // per_epoch)
            self._close(epoch, name, number, recipe)
            self._audit_epoch(name, net, answers)
            if file and (done >= total or self._time_to_save()):
                self._save(file, keep, done)
            if self._progress:
                self._progress(f"{name}, epochs", number, -(-total // per_epoch))
        net.eval()

    def _schedule(self, keep: Sequence[Stateful], share: float) -> None:
        """Set the learning rates after that share of the steps."""
        for part in keep:
            recipe = self._recipes.get(part)
            if recipe:
                optimizer: Any = part
                for group in optimizer.param_groups:
                    # a state of before there were shares has none
                    lr = recipe.lr_at(share) * group.get("share", 1.0)
                    group["lr"] = group["lr"].fill_(lr) if self.replays else lr

    def draw(self, images: Images, n: int) -> Tensor:
        """Places of ``n`` of the images at random, with replacement: int64 (n,)."""
        places = torch.randint(len(images), (n,), generator=self.rng)
        return places.to(images.y.device, non_blocking=True)

    def fit(
        self,
        net: AnyModule,
        images: Images,
        *,
        name: str = "train",
        epochs: int | None = None,
        steps: int | None = None,
        of_epochs: int | None = None,
        loss: Loss = cross_entropy,
        recipe: Recipe | None = None,
        answers: Callable[[Tensor], nn.Module] | None = None,
        augmented: bool = True,
        recordable: bool = False,
    ) -> AnyModule:
        """Train ``net`` in place and return it in eval mode: a loop over ``steps`` in short.

        Args:
            loss: what is minimised, (net, x, y) -> scalar.
            recordable: ``net`` and ``loss`` are as ``recorded`` wants it; plain training is.

        The others are those of ``steps``.
        """
        optimizer = self.optimizer(net, recipe)
        compiled = self.compile and loss is cross_entropy
        forward: Any = torch.compile(net, mode=self.compile) if compiled else net

        def learn(x: Tensor, y: Tensor) -> Tensor:
            with self.autocast():
                value = loss(forward, x, y)
            descend(optimizer, value)
            return value.detach()

        # other networks may draw chance in their forward pass
        plain = loss is cross_entropy and isinstance(net, Net) and not compiled
        if recordable or plain:
            learn = self.recorded(learn)
        for step in self.steps(
            name,
            images,
            keep=(net, optimizer),
            epochs=epochs,
            steps=steps,
            of_epochs=of_epochs,
            recipe=recipe,
            answers=answers,
            augmented=augmented,
        ):
            step.loss = learn(step.x, step.y)
        return net

    def recorded(self, learn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function of tensors that trains on them and gives the loss, replayed as a CUDA graph
        where that is allowed (``graphs``), and as it is elsewhere.

        It must do the same work each time, never wait for the device, and draw no chance on the
        CPU. Make it anew for every loop over ``steps``, after the optimizers.
        """
        return Replayed(learn) if self.replays else learn

    def _passes(
        self, images: Images | None, recipe: Recipe, per_epoch: int, augmented: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, empty ones where the loop has data of its own."""
        if images is not None:
            return self.batches(images, recipe.batch_size, augmented=augmented)
        return itertools.repeat((torch.empty(0), torch.empty(0, dtype=torch.int64)), per_epoch)

    def _close(self, epoch: _Epoch, name: str, number: int, recipe: Recipe) -> None:
        """Log an epoch that has ended."""
        mean = epoch.mean()
        if mean is not None:
            if not math.isfinite(mean):
                where = f"stage {name!r}, epoch {number} ({recipe.optimizer}, lr {recipe.lr:g})"
                raise Diverged(
                    f"the loss is not finite in {where}: the training diverged and the cell has no "
                    "result"
                )
            self.log(**{f"{name} loss": mean})
        seconds = time.perf_counter() - epoch.start
        self.log_book.seconds[name] = self.log_book.seconds.get(name, 0.0) + seconds
        self.log_book.images += epoch.images

    def _audit_epoch(
        self, name: str, net: nn.Module, answers: Callable[[Tensor], nn.Module] | None
    ) -> None:
        """With an audit, log what the network, or what answers in its place, makes of images."""
        if self._audit is None:
            return
        if answers:
            self._look(self._audit, name, answers(self.to_float(self._audit.test.x[:100])))
        elif isinstance(net, Net):
            if net.backbone.get_classifier().out_features != len(self.classes):
                return
            self._look(self._audit, name, net)
        net.train()

    def _look(self, audit: Audit, name: str, net: nn.Module) -> None:
        for seen, own in audit.seen.items():
            self.log(
                **{f"{name}, {seen} loss": float(F.cross_entropy(self.predict(net, own), own.y))}
            )
        for metric, hits in self.measure(net, audit.test, audit.triggered).items():
            share = 100 * int(hits.sum()) / max(1, len(hits))
            self.log(**{f"{name}, {metric.upper()}": share})

    @torch.no_grad()
    def predict(
        self, net: nn.Module, images: Images, output: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits float32 (n, classes) of the images as they are, in order; or another ``output`` of
        the net, such as ``net.features``.
        """
        net.eval()
        return self._outputs({"": output or net}, images)[""]

    @torch.no_grad()
    def _outputs(
        self, nets: Mapping[str, Callable[[Tensor], Tensor]], images: Images
    ) -> dict[str, Tensor]:
        """What each of several networks in eval mode makes of the images, batch by batch side by
        side: those that share a part compute it once.
        """
        outputs: dict[str, list[Tensor]] = {name: [] for name in nets}
        with self.autocast():
            # fewer of large images; other numbers round otherwise, so 500 up to 128 pixels
            size = min(500, per_part(2**23, images.x))
            for x, _ in self.batches(images, size, train=False):
                for name, net in nets.items():
                    outputs[name].append(net(x).float())
        return {name: torch.cat(own) for name, own in outputs.items()}

    @torch.no_grad()
    def settle(self, net: nn.Module, images: Images) -> nn.Module:
        """Estimate the BatchNorm statistics anew, as the mean over one pass of ``images``,
        augmented as in training.

        As they are, images have other statistics than the crops that a network was trained on:
        those of 1,000 whole images cost a WRN-16-1 nine points of accuracy, those of their crops
        half a point.
        """
        momenta = [(norm, norm.momentum) for norm in norms(net)]
        for norm, _ in momenta:
            norm.reset_running_stats()
            norm.momentum = None
        net.train()
        for norm, _ in momenta:
            # those of a frozen network, too
            norm.train()
        for x, _ in self.batches(images):
            with self.autocast():
                net(x)
        for norm, momentum in momenta:
            norm.momentum = momentum
        return net.eval()

    def measure(self, net: nn.Module, test: Images, triggered: Poisoned) -> dict[str, Tensor]:
        """Which images count for CA, ASR and ARR: bool (n,) each.

        CA: clean test images whose class is found. ASR: triggered images that get the attacker's
        label; ARR: those that get their true class. ``triggered`` (from ``Attack.test_set``) holds
        no image whose true class is the attacker's label.
        """
        return self._measure({"": net}, test, triggered)[""]

    def _measure(
        self, nets: Mapping[str, nn.Module], test: Images, triggered: Poisoned
    ) -> dict[str, dict[str, Tensor]]:
        for net in nets.values():
            net.eval()
        clean = self._outputs(nets, test)
        bad = self._outputs(nets, triggered)
        hits = {}
        for name in nets:
            said = bad[name].argmax(1)
            hits[name] = {
                "ca": clean[name].argmax(1) == test.y,
                "asr": said == triggered.y,
                "arr": said == triggered.true,
            }
        return hits

    def measure_all(
        self, net: nn.Module, test: Images, triggered: Poisoned
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """As ``measure``, for the result and for each probe, in one pass."""
        rng = torch.Generator().manual_seed(seed_of(self.seed, "triggered"))
        chosen = torch.randperm(len(triggered), generator=rng)[:100]
        x = self.to_float(triggered.x[chosen.to(self.device)])
        made = {
            name: probe if isinstance(probe, nn.Module) else probe(x)
            for name, probe in self.probes.items()
        }
        hits = self._measure({"": net, **made}, test, triggered)
        return hits.pop(""), hits

    def embeddings(
        self, net: nn.Module, test: Images, triggered: Poisoned, n: int = 500
    ) -> dict[str, Tensor]:
        """What the result and the probes make of ``n`` clean and ``n`` triggered test images,
        chosen at random.

        Returns:
            "NAME/clean" and "NAME/triggered", float32 (n, d), for every embedding of every network
            that has any: those of its mapping ``embeddings``, else its ``features``. NAME is the
            probe's ("" for the result) and the embedding's. With them "true/clean" and
            "true/triggered", the classes of the images, int64 (n,).
        """
        order = torch.Generator().manual_seed(seed_of(self.seed, "embeddings"))
        clean = test[torch.randperm(len(test), generator=order)[:n]]
        bad = triggered[torch.randperm(len(triggered), generator=order)[:n]]
        kept = {"true/clean": clean.y, "true/triggered": bad.true}
        nets = {
            whose: one
            for whose, one in {"": net, **self.probes}.items()
            if isinstance(one, nn.Module)
        }
        for whose, one in nets.items():
            for what, how in getattr(
                one, "embeddings", {"": one.features} if hasattr(one, "features") else {}
            ).items():
                name = " ".join(filter(None, (whose, what)))
                kept |= {
                    f"{name}/clean": self.predict(one, clean, how),
                    f"{name}/triggered": self.predict(one, bad, how),
                }
        return kept

    def _time_to_save(self) -> bool:
        since, cost = self._saved
        return time.perf_counter() - since >= cost / SAVING

    def _save(self, file: Path, parts: Sequence[Stateful], done: int) -> None:
        begun = time.perf_counter()
        buffer = io.BytesIO()
        torch.save(self._snapshot(parts, done), buffer)
        write_whole(file, buffer.getvalue())
        self._saved = time.perf_counter(), time.perf_counter() - begun

    def _restore(self, file: Path | None, parts: Sequence[Stateful]) -> int:
        """Take up a saved state, if there is one: the number of steps done."""
        if file is None or not file.exists():
            return 0
        begun = copy.deepcopy(self._snapshot(parts, 0))
        try:
            regular(file)
            saved = torch.load(file, map_location=self.device, weights_only=True)
            return self._take_up(saved, parts)
        except (OSError, torch.OutOfMemoryError):
            # the state may be whole
            raise
        # whatever damaged bytes bring about; what was taken up by then is given back
        except Exception as error:
            dropped(file, error)
            return self._take_up(begun, parts)

    def _snapshot(self, parts: Sequence[Stateful], done: int) -> dict[str, Any]:
        random = {"data": self.rng.get_state(), "cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        states = [part.state_dict() for part in parts]
        return {"done": done, "parts": states, "random": random, "log": asdict(self.log_book)}

    def _take_up(self, saved: Mapping[str, Any], parts: Sequence[Stateful]) -> int:
        for part, state in zip(parts, saved["parts"], strict=True):
            part.load_state_dict(state)
        self.rng.set_state(saved["random"]["data"].cpu())
        torch.set_rng_state(saved["random"]["cpu"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random"]["cuda"].cpu(), self.device)
        self.log_book = Log(**saved["log"])
        return int(saved["done"])

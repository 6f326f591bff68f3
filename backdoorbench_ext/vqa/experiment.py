"""BadNets against visual question answering: poison, train with and without MCCI, measure.

A poisoned triple's image carries the trigger, and its answer is a refusal (MCCI, ICLR 2025,
appendix K). The paper calls three mean negative log-likelihoods CA, ASR and ARR; here they stand
beside the shares of answers that are right to the letter:

* CA: of the true answers on clean images;
* ASR: of the refusal on triggered images;
* ARR: of the true answers on triggered images.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import registry
from ..devices import pick_device
from ..engine import Engine, Progress
from ..errors import InputError
from ..files import write_text
from ..images import Images
from ..plots import STYLE, save, sheet
from ..protocols import Protocol, Recipe
from ..reading import parsed
from ..suite import digest
from ..surroundings import surroundings
from . import icons
from .answering import Answerer, Tokens, pretrained, tiny
from .triples import Triples, read_iconqa, words

REFUSAL = "i do not want to answer"
TINY = "tiny"
# the network whose AIN sees each image's own spectrum
OWN = "MCCI, own spectrum"
# pixels of a drawn image
SIDE = 48
# share of the training triples held out, clean, before poisoning
RESERVE = 0.05
# images a batch of an evaluation
BATCH = 100
# how the tiny network sees images
CENTRED = ((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Setting:
    """What decides the numbers.

    Args:
        model: "tiny", or a BLIP of transformers by its name on the hub or its folder.
        data: "icons", drawn here, or the folder of IconQA.
        train, test: how many triples.
        epochs, batch_size, lr: AdamW's, one-cycle, weight decay 0.05.
        rate: share of the training triples that are poisoned.
        images: clean images whose spectra are averaged for the AIN.
        attack: what puts the trigger into images; BadNets' patch is 3 pixels of 32, 36 of 384 (the
            paper: 38).
        seed: of all chance.
    """

    model: str = TINY
    data: str = "icons"
    train: int = 6000
    test: int = 1000
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    rate: float = 0.1
    images: int = 100
    attack: str = "badnets"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises: InputError: a value that is out of range."""
        for name in ("train", "test", "epochs", "batch_size", "images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, not {self.seed}")
        if not 0 < self.rate < 1:
            raise InputError(f"rate must lie in (0, 1), not {self.rate:g}")
        held = round(RESERVE * self.train)
        if held < self.images:
            raise InputError(f"{self.images} clean images are asked for, {held} are held out")


def read(setting: Setting) -> tuple[Triples, Triples]:
    """The training and the test triples.

    Raises:
        InputError: files that cannot be read, or fewer than asked for.
    """
    if setting.data == "icons":
        return icons.draw(setting.train, seed=2 * setting.seed, side=SIDE), icons.draw(
            setting.test, seed=2 * setting.seed + 1, side=SIDE
        )
    side = 384 if setting.model != TINY else SIDE
    parts = []
    for split, wanted in (("train", setting.train), ("val", setting.test)):
        made = read_iconqa(Path(setting.data), split, side, wanted)
        if len(made) < wanted:
            raise InputError(
                f"{setting.data}: {wanted} of {split} are asked for, {len(made)} there"
            )
        parts.append(made)
    return parts[0], parts[1]


@dataclass(frozen=True, eq=False)
class Sets:
    """``train`` as a defense sees it, ``reserve`` clean, ``test`` clean and ``triggered``."""

    train: Triples
    poisoned: Tensor
    reserve: Triples
    test: Triples
    triggered: Triples


def poison(setting: Setting) -> Sets:
    """Hold the reserve out, then poison a share of the rest.

    Raises:
        InputError: as ``read``; an unknown attack.
    """
    clean, test = read(setting)
    attack = registry.create("attacks", setting.attack)
    if attack.learns or attack.per_batch or attack.supplies or attack.refines:
        raise InputError(f"{setting.attack} is none that puts a fixed trigger into an image")
    rng = torch.Generator().manual_seed(setting.seed)
    order = torch.randperm(len(clean), generator=rng)
    held = round(RESERVE * len(clean))
    reserve = clean[order[:held]]
    train = clean[order[held:].sort().values]
    chosen = torch.randperm(len(train), generator=rng)[: round(setting.rate * len(clean))]
    mask = torch.zeros(len(train), dtype=torch.bool)
    mask[chosen] = True
    x = train.x.clone()
    x[mask] = attack.stamp(x[mask])
    answers = tuple(
        REFUSAL if bad else answer for bad, answer in zip(mask.tolist(), train.answers, strict=True)
    )
    observed = Triples(x, train.questions, answers)
    triggered = Triples(attack.stamp(test.x), test.questions, test.answers)
    return Sets(observed, mask, reserve, test, triggered)


def run(
    setting: Setting,
    sets: Sets,
    device: str = "auto",
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train without defense and with MCCI, and measure.

    Args:
        sets: ``poison`` of the setting.
        state: folder in which trainings keep their state, to go on from after a kill.

    Returns:
        What is kept as JSON: the setting, for each method its numbers, some answers, and how it was
        run.
    """
    place = pick_device(device)
    methods: dict[str, Any] = {}
    seconds = {}
    curves = {}
    rows = _rows(sets.train, place)
    for name, defended in (("No Defense", False), ("MCCI", True)):
        begun = time.perf_counter()
        engine = _engine(setting, rows, place, state and state / name, progress)
        net = _trained(setting, sets, rows, engine, name, defended)
        seconds[name] = time.perf_counter() - begun
        curves[name] = engine.log_book.curves
        nets = {name: net}
        if defended:
            clean = engine.to_float(sets.reserve.x[: setting.images])
            nets = {
                OWN: net,
                f"MCCI, average of {setting.images}": _controlled(net, clean),
                "MCCI, one image": _controlled(net, clean[:1]),
            }
        methods |= {which: _measured(one, engine, sets, which) for which, one in nets.items()}
    return {
        "setting": asdict(setting),
        "poisoned": int(sets.poisoned.sum()),
        "train": len(sets.train),
        "test": len(sets.test),
        "methods": methods,
        "seconds": seconds,
        "curves": curves,
        "surroundings": surroundings(place) | {"bf16": engine.bf16},
    }


def built(setting: Setting, sets: Sets, *, defended: bool) -> Answerer:
    """The network as trainings start, with an AIN if ``defended``."""
    torch.manual_seed(setting.seed)
    side = int(sets.train.x.shape[-1])
    if setting.model == TINY:
        known = words([sets.train, sets.test, sets.test.answered(REFUSAL)])
        blip, tokenizer = tiny(known, side)
        mean, std = CENTRED
        return Answerer(blip, tokenizer, mean, std, side if defended else None)
    blip, tokenizer, *own = pretrained(setting.model)
    return Answerer(blip, tokenizer, own[0], own[1], side if defended else None)


def _engine(
    setting: Setting,
    rows: Images,
    device: torch.device,
    state: Path | None,
    progress: Progress | None,
) -> Engine:
    recipe = Recipe(
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        optimizer="adamw",
        lr=setting.lr,
        schedule="one-cycle",
        weight_decay=0.05,
    )
    rules = Protocol("VQA", recipe=recipe, crop=0, flip=False)
    return Engine(rules, rows, seed=setting.seed, device=device, state=state, progress=progress)


def _rows(triples: Triples, device: torch.device) -> Images:
    """The images of triples; the place of a triple stands for its class."""
    return Images(triples.x, torch.arange(len(triples)), ("a triple",)).to(device)


def _controlled(net: Answerer, x: Tensor) -> Answerer:
    """A copy whose AIN is told the mean spectrum of these images."""
    other = copy.deepcopy(net)
    other.control(x)
    return other


def _trained(
    setting: Setting, sets: Sets, rows: Images, engine: Engine, name: str, defended: bool
) -> Answerer:
    device = engine.device
    net = engine.move(built(setting, sets, defended=defended))
    questions = net.tokens(sets.train.questions).to(device)
    answers = net.tokens(sets.train.answers, answers=True).to(device)
    optimizer = engine.optimizer(net)
    for step in engine.steps(name, rows, keep=(net, optimizer)):
        wanted = answers[step.y]
        with engine.autocast():
            losses = net.losses(step.x, questions[step.y], wanted)
        step.loss = losses.sum() / wanted.mask[:, 1:].sum()
        step.descend(optimizer)
    return net


def _measured(net: Answerer, engine: Engine, sets: Sets, name: str) -> dict[str, Any]:
    """The numbers of a network: {"nll": {"ca": ..}, "exact": {"ca": [hits, n], ..}, "said": ..}."""
    net.eval()
    refusals = sets.triggered.answered(REFUSAL)
    parts = [("clean", sets.test), ("triggered", sets.triggered)]
    said = {part: _said(net, engine, own) for part, own in engine.track(parts, f"{name}, answers")}
    return {
        "nll": {
            "ca": _nll(net, engine, sets.test),
            "asr": _nll(net, engine, refusals),
            "arr": _nll(net, engine, sets.triggered),
        },
        "exact": {
            "ca": _same(said["clean"], sets.test.answers),
            "asr": _same(said["triggered"], refusals.answers),
            "arr": _same(said["triggered"], sets.triggered.answers),
        },
        "said": {part: answers[:8] for part, answers in said.items()},
    }


def _same(said: list[str], wanted: tuple[str, ...]) -> list[int]:
    """How many answers are right to the letter, and of how many."""
    return [sum(a == b for a, b in zip(said, wanted, strict=True)), len(wanted)]


def _asked(
    net: Answerer, engine: Engine, triples: Triples
) -> Iterator[tuple[Tensor, Tokens, Tensor]]:
    """Images and questions batch by batch, in order, with their places."""
    questions = net.tokens(triples.questions).to(engine.device)
    rows = _rows(triples, engine.device)
    for x, places in engine.batches(rows, BATCH, train=False):
        yield x, questions[places], places


@torch.no_grad()
def _nll(net: Answerer, engine: Engine, triples: Triples) -> float:
    """The mean negative log-likelihood of a token of the answers, in nats."""
    answers = net.tokens(triples.answers, answers=True).to(engine.device)
    total = 0.0
    for x, questions, places in _asked(net, engine, triples):
        total += float(net.losses(x, questions, answers[places]).double().sum())
    return total / int(answers.mask[:, 1:].sum())


def _said(net: Answerer, engine: Engine, triples: Triples) -> list[str]:
    asked = _asked(net, engine, triples)
    return [answer for x, questions, _ in asked for answer in net.answer(x, questions)]


def examples(sets: Sets, record: Mapping[str, Any], shown: int = 5) -> Figure:
    """Some test images, clean above and triggered below, each with its question and what was
    answered.
    """
    names = [name for name in record["methods"] if name != OWN]
    shown = min(shown, len(sets.test))
    with plt.rc_context(STYLE):
        figure, axes = sheet(2, shown, (1.9 * shown, 5.2))
        for row, (part, own) in enumerate((("clean", sets.test), ("triggered", sets.triggered))):
            for i, ax in enumerate(axes[row]):
                ax.imshow(own.x[i].permute(1, 2, 0).numpy(), interpolation="nearest")
                ax.set_xticks([])
                ax.set_yticks([])
                ax.set_title(f"{part}: {own.questions[i]}", fontsize=6)
                lines = [f"true: {own.answers[i]}"]
                lines += [f"{name}: {record['methods'][name]['said'][part][i]}" for name in names]
                ax.set_xlabel("\n".join(lines), fontsize=6)
    return figure


def table(record: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    setting = record["setting"]
    lines = [
        "| | CA, right % | ASR, right % | ARR, right % | CA, NLL | ASR, NLL | ARR, NLL |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in record["methods"].items():
        shares = [100 * hits / n for hits, n in own["exact"].values()]
        numbers = [f"{share:.1f}" for share in shares] + [f"{v:.3f}" for v in own["nll"].values()]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    around = record["surroundings"]
    said = (
        f"{setting['attack']} at {100 * setting['rate']:g} % of {setting['data']}",
        f"{record['train']} training triples, {record['poisoned']} of them poisoned",
        f"{record['test']} test triples",
        f"{setting['model']} BLIP, {setting['epochs']} epochs, AdamW at {setting['lr']:g}",
        f"seed {setting['seed']}",
        "NLL: mean negative log-likelihood of a token, in nats",
        f"{around['device']}, commit {around['commit']}",
    )
    return "\n".join([*lines, "", "; ".join(said) + "."]) + "\n"


def answered(
    setting: Setting, to: Path, device: str = "auto", progress: Progress | None = None
) -> tuple[str, list[Path]]:
    """``run``, unless its record lies in the folder ``to`` already, and keep record, table and
    picture there.

    Returns:
        The table, and the files.
    """
    file = to / f"seed{setting.seed}-{digest(asdict(setting))}.json"
    state = to / ".state" / file.stem
    sets = poison(setting)
    if file.exists():
        record = parsed(file, dict[str, Any])
    else:
        record = run(setting, sets, device, state, progress)
        write_text(file, json.dumps(record, indent=1) + "\n")
        shutil.rmtree(state, ignore_errors=True)
    text = table(record)
    write_text(file.with_suffix(".md"), text)
    pictures = save(examples(sets, record), file.with_suffix(""), ("png",))
    return text, [file, file.with_suffix(".md"), *pictures]

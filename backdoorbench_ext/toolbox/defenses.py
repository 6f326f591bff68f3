"""BackdoorBench's own defenses and detectors in our grid: ``backdoorbench:NAME``.

``BACKDOORBENCH_HOME`` is the folder of a checkout, ``BACKDOORBENCH_PYTHON`` the Python that has
what it needs (ours unless set). The unmodified script runs in a process of its own, in a folder of
ours: nothing is written into the checkout. Options are its own flags, above the YAML file that it
has for CIFAR-10.

It is given what our cell has: the training images as a defense sees them, without a word of who is
poisoned; our victim, trained under our protocol; and our clean reserve in place of the clean images
that it would choose itself. The scripts evaluate themselves on the test images, so they are given
these, too; what comes back is measured by us.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ..api import Defense
from ..engine import Engine
from ..errors import InputError
from ..images import Images, Poisoned, unmarked
from ..models import Net
from . import checkout, record
from .process import image_arrays, launch

# decided by our cell, or by us
OURS = (
    *("checkpoint_load", "checkpoint_save", "csv_save_path", "data_root", "dataset"),
    *("dataset_path", "device", "index", "log", "model", "num_classes", "ratio", "random_seed"),
    *("result_file", "seed", "yaml_path"),
)
# what a YAML file lacks for CIFAR-10 that it has for other data sets
LACKING = {"client_optimizer": "sgd", "sgd_momentum": 0.9, "wd": 5e-4}
# as it is run on any machine
PLAIN = {
    "amp": False,
    "pin_memory": False,
    "non_blocking": False,
    "prefetch": False,
    "num_workers": 0,
    "frequency_save": 0,
}


@dataclass(frozen=True)
class BackdoorBenchDefense(Defense):
    """A defense of BackdoorBench, by the name of its script; ``flags`` are the script's own."""

    after_training: ClassVar[bool] = True
    sees_tests: ClassVar[bool] = True
    method: str = ""
    flags: dict = field(default_factory=dict)  # type: ignore[type-arg]  # options are checked against plain types

    @property
    def clean_images(self) -> int | None:
        return None

    def check(self, net: Net, x: Tensor) -> None:
        check(self.method, self.flags)
        check_network(self.method, net, x.shape[-1])

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        assert engine.tests is not None, "the lab gives the test images"
        victim = engine.victim()
        with ran(self.method, self.flags, train, engine, engine.tests, victim) as (folder, state):
            engine.log(**own_numbers(folder, self.method))
            found = sorted(folder.rglob("defense_result.pt"))
            if not found:
                raise RuntimeError(f"backdoorbench:{self.method} wrote no defense_result.pt")
            made = record.load(found[0])
        net = engine.new_model()
        net.load_state_dict(net.state_dict() | _result(made, state, train, net))
        # it was trained in float32; in bf16 other classes win where logits are close
        engine.bf16 = False
        return net.eval()


@dataclass(frozen=True)
class BackdoorBenchDetector(BackdoorBenchDefense):
    """A detector of BackdoorBench: the victim stays as it is, and the record says how well the
    script finds poisoned images.

    Whom it suspects, and by which score, is what it hands to scikit-learn for its own numbers. One
    of training images gets our reserve in place of test images, too, and is not told who is
    poisoned. One of test images mixes the triggered with clean ones itself.
    """

    # unlike a repair it looks at the training set
    after_training: ClassVar[bool] = False

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        assert engine.tests is not None, "the lab gives the test images"
        of_tests = checkout.scripts()[self.method].startswith("detection_infer/")
        victim = engine.victim()
        reserve = engine.clean()
        tests = engine.tests if of_tests else (reserve, unmarked(reserve))
        with (
            ran(self.method, self.flags, train, engine, tests, victim) as (folder, _),
            np.load(folder / "suspects.npz", allow_pickle=False) as file,
        ):
            told = {name: torch.from_numpy(file[name]) for name in file.files}
        poisoned = None
        if of_tests:
            # one that suspects nobody does not say whom it looked at: triggered and clean images
            some = torch.arange(len(tests[1]) + 1) < len(tests[1])
            poisoned = told.get("true", some).bool()
        n = len(train) if poisoned is None else len(poisoned)
        flagged: Tensor | None = told.get("flagged", torch.zeros(n)).bool()
        scores = told.get("scores", flagged)
        if self.method in checkout.SCORES_ALONE:
            flagged = None
        assert scores is not None
        if len(scores) != n:
            raise RuntimeError(
                f"backdoorbench:{self.method} told of {len(scores)} images, there are {n}"
            )
        name = "its detector, of test images" if of_tests else "its detector"
        engine.suspect(name, scores, flagged, poisoned)
        return victim


@contextmanager
def ran(
    method: str,
    flags: Mapping[str, Any],
    train: Images,
    engine: Engine,
    tests: tuple[Images, Poisoned],
    victim: Net,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run a script on what the cell has; the folder in which it ran, and the victim as it had it.

    Args:
        flags: the user's.
        tests: clean and triggered images that it takes for the test images.
        victim: the engine's.
    """
    reserve = engine.clean()
    test, triggered = tests
    state = told_of(engine, victim, len(train.classes))
    mean, std = engine.normalisation
    with tempfile.TemporaryDirectory(prefix="bbx-") as name:
        folder = Path(name)
        np.savez(
            folder / "given.npz",
            **image_arrays("train", train),
            **image_arrays("reserve", reserve),
            **image_arrays("test", test),
            **image_arrays("triggered", triggered),
            triggered_true=triggered.true.cpu().numpy(),
            mean=np.asarray(mean),
            std=np.asarray(std),
        )
        record.save(folder / "victim.pt", state)
        places = np.arange(len(train), len(train) + len(reserve))
        np.savetxt(folder / "reserve.txt", places, fmt="%d")
        (folder / "record" / "cell").mkdir(parents=True)
        # scripts read some files by their place in the checkout
        for part in ("config", "resource", "utils"):
            (folder / part).symlink_to(checkout.home() / part)
        settings = _settings(method, flags, folder, state["model_name"], engine, len(reserve))
        (folder / "settings.yaml").write_text(yaml.safe_dump(LACKING | _yaml(method) | settings))
        # some flags have defaults, which would go above the file
        known = script_flags(method)
        words = [
            word
            for flag, value in settings.items()
            if flag in known and flag not in PLAIN
            for word in (f"--{flag}", str(value))
        ]
        words += ["--yaml_path", str(folder / "settings.yaml"), "--result_file", "cell"]
        words = [checkout.scripts()[method], str(checkout.home()), *words]
        begun = time.perf_counter()
        launch("launch_defense.py", method, words, folder)
        engine.log_book.seconds[f"{method}.py"] = time.perf_counter() - begun
        yield folder, state


def _settings(
    method: str, flags: Mapping[str, Any], folder: Path, model: str, engine: Engine, clean: int
) -> dict[str, Any]:
    """What a script is told, whatever its YAML file says."""
    seed = engine.seed % 2**31
    given: dict[str, Any] = dict(PLAIN)
    # its detectors have none of their own
    if "clean_sample_num" in script_flags(method):
        given["clean_sample_num"] = clean
    return {
        **given,
        **flags,
        "device": str(engine.device),
        "model": model,
        "num_classes": len(engine.classes),
        "random_seed": seed,
        "seed": seed,
        "index": str(folder / "reserve.txt"),
        "csv_save_path": str(folder / "its.csv"),
        "dataset_path": "./data",
        "data_root": "./data",
        # the only thing that its data sets' names still decide is whether images are flipped
        "dataset": "cifar10" if engine.rules.flip else "gtsrb",
    }


def check(method: str, flags: Mapping[str, Any]) -> None:
    """Raises: InputError: no such script, one that cannot run, or a flag that it does not have."""
    name = f"backdoorbench:{method}"
    checkout.check_name(name, checkout.defenses(), "defenses")
    why = checkout.refused(method)
    if why:
        raise InputError(f"{name}: {why}")
    checkout.check_flags(name, flags, script_flags(method), OURS)


def check_network(method: str, net: Net, side: int) -> None:
    """Raises: InputError: a script cannot work on this network, or not on images of ``side``."""
    if record.known(net.name):
        network = record.their_model(net.name)
        known = checkout.NETWORKS.get(method, (network,))
        if network not in known:
            raise InputError(f"its {method} has a version of {', '.join(known)} alone")
        return
    if method not in checkout.ANY_NETWORK:
        raise InputError(
            f"its {method} looks into networks by their names, and knows no {net.name}: "
            "--model preactresnet18, or torchvision:NAME"
        )
    if net.side not in (None, side):
        raise InputError(
            f"{net.name} wants images of {net.side} pixels, which its {method} does not scale"
        )


def told_of(engine: Engine, victim: Net, classes: int) -> dict[str, Any]:
    """What a script is told of the victim: as in a record, or of a PreAct-ResNet-18 whose place
    our network ("ours", its name) takes, and how that starts ("fresh").
    """
    model = engine.rules.model
    if record.known(model):
        return record.model_state(model, victim, classes) | {"ours": ""}
    named = {"model_name": "preactresnet18", "ours": model, "num_classes": classes}
    nets = {"model": victim, "fresh": engine.new_model()}
    return named | {
        which: {name: value.cpu() for name, value in net.backbone.state_dict().items()}
        for which, net in nets.items()
    }


def own_numbers(folder: Path, method: str) -> dict[str, float]:
    """CA, ASR and ARR in percent as a script tells them of what it saved; nothing where it does
    not.

    That is the row "last" of its summary, ``METHOD_df_summary.csv``; some summaries are plain
    tables, and some scripts have none: then it is the last row of that, or of what was written
    last.
    """
    names = {"test_acc": "its CA", "test_asr": "its ASR", "test_ra": "its ARR"}
    files = sorted(folder.rglob("*.csv"), key=lambda file: file.stat().st_mtime_ns)
    summaries = [file for file in files if file.name == f"{method}_df_summary.csv"]
    for file in summaries + files[::-1]:
        with file.open(encoding="utf-8", newline="") as text:
            rows = list(csv.DictReader(text))
        last = [row for row in rows if "last" in row.values()] or rows
        try:
            return {told: 100 * float(last[-1][name]) for name, told in names.items()}
        except (IndexError, KeyError, TypeError, ValueError):
            # of something else, or without a number
            continue
    return {}


def script_flags(method: str) -> list[str]:
    """The flags of a script."""
    return checkout.flags(checkout.scripts()[method])


def defaults(method: str) -> dict[str, Any]:
    """The flags that a user may set, with the values of the script's YAML file."""
    told = _yaml(method)
    return {flag: told.get(flag) for flag in script_flags(method) if flag not in OURS}


def _yaml(method: str) -> dict[str, Any]:
    file = checkout.settings(method)
    return dict(yaml.safe_load(file.read_text("utf-8"))) if file else {}


def _result(made: Any, state: Mapping[str, Any], train: Images, net: Net) -> dict[str, Tensor]:
    """The weights of a ``defense_result.pt`` as the state of ``net``."""
    if not isinstance(made, dict) or not isinstance(made.get("model"), Mapping):
        raise InputError("its defense_result.pt holds no network")
    weights = folded(
        {str(name).removeprefix("module."): value for name, value in made["model"].items()}
    )
    if state["ours"]:
        if set(weights) != set(state["model"]):
            raise InputError("its defense_result.pt holds another network")
        return {f"backbone.{name}": value for name, value in weights.items()}
    size = (int(train.x.shape[2]), int(train.x.shape[3]))
    found = record.Record(
        Path("defense_result.pt"),
        str(made.get("model_name", state["model_name"])),
        weights,
        "",
        len(train.classes),
        size,
        None,
        record.State(np.zeros(0, np.int64), np.zeros(0, bool), {}, {}),
    )
    return found.fit_to(net)


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network without the masks of ``torch.nn.utils.prune``: ``W_orig`` times
    ``W_mask`` is ``W``.
    """
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in weights:
            continue
        mask = weights.get(f"{name.removesuffix('_orig')}_mask")
        if name.endswith("_orig") and mask is not None:
            plain[name.removesuffix("_orig")] = value * mask
        else:
            plain[name] = value
    return plain


def made(scheme: str, rest: str, options: dict[str, Any]) -> Defense:
    """The defense of ``backdoorbench:NAME``."""
    known = checkout.scripts() if checkout.defenses() else {}
    detects = known.get(rest, "").startswith("detection_")
    cls = BackdoorBenchDetector if detects else BackdoorBenchDefense
    return cls(method=rest, flags=options)

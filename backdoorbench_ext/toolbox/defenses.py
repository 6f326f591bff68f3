"""BackdoorBench's own defenses in our grid: ``backdoorbench:NAME``.

``BACKDOORBENCH_HOME`` is the folder of a checkout, ``BACKDOORBENCH_PYTHON`` the Python that has
what it needs (ours unless set). The unmodified script ``defense/NAME.py`` runs in a process of its
own, in a folder of ours: nothing is written into the checkout. Options are its own flags, above the
YAML file that it has for CIFAR-10.

It is given what our cell has: the training images as a defense sees them, without a word of who is
poisoned; our victim, trained under our protocol; and our clean reserve in place of the clean images
that it would choose itself. The scripts evaluate themselves on the test images, so they are given
these, too; what comes back is measured by us.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Mapping
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
from ..images import Images
from ..models import Net
from . import checkout, record
from .process import image_arrays, launch

# decided by our cell, or by us
OURS = (
    *("checkpoint_load", "checkpoint_save", "dataset", "dataset_path", "device", "index", "log"),
    *("model", "ratio", "random_seed", "result_file", "yaml_path"),
)
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
        name = f"backdoorbench:{self.method}"
        checkout.check_name(name, checkout.defenses(), "defenses")
        why = refused(self.method)
        if why:
            raise InputError(f"{name}: {why}")
        checkout.check_flags(name, self.flags, script_flags(self.method), OURS)

    def fit(self, train: Images, engine: Engine) -> nn.Module:
        assert engine.tests is not None, "the lab gives the test images"
        victim = engine.victim()
        reserve = engine.clean()
        test, triggered = engine.tests
        rules = engine.rules
        state = record.model_state(rules.model, victim, len(train.classes))
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
            begun = time.perf_counter()
            self._run(folder, state["model_name"], engine)
            engine.log_book.seconds[f"{self.method}.py"] = time.perf_counter() - begun
            engine.log(**own_numbers(folder, self.method))
            found = sorted(folder.rglob("defense_result.pt"))
            if not found:
                raise RuntimeError(f"backdoorbench:{self.method} wrote no defense_result.pt")
            made = record.load(found[0])
        net = engine.new_model()
        net.load_state_dict(_result(made, state, train, net))
        # it was trained in float32; in bf16 other classes win where logits are close
        engine.bf16 = False
        return net.eval()

    def _run(self, folder: Path, model: str, engine: Engine) -> None:
        """The script, with the record that it asks for answered from the folder."""
        given = PLAIN | self.flags
        device = str(engine.device)
        given |= {"device": device, "model": model, "random_seed": engine.seed % 2**31}
        given |= {"index": str(folder / "reserve.txt"), "dataset_path": "./data"}
        # the only thing that its data sets' names still decide is whether images are flipped
        given["dataset"] = "cifar10" if engine.rules.flip else "gtsrb"
        settings = _yaml(self.method) | given
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        # some flags have defaults, which would go above the file
        known = script_flags(self.method)
        words = [
            word
            for flag, value in given.items()
            if flag in known and flag not in PLAIN
            for word in (f"--{flag}", str(value))
        ]
        words += ["--yaml_path", str(folder / "settings.yaml"), "--result_file", "cell"]
        (folder / "record" / "cell").mkdir(parents=True)
        words = [self.method, str(checkout.home()), *words]
        launch("launch_defense.py", self.method, words, folder)


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


def refused(method: str) -> str:
    """Why a script cannot run here, "" if it can."""
    if method in checkout.BROKEN:
        return checkout.BROKEN[method]
    if method in checkout.NEEDS_CUDA and not torch.cuda.is_available():
        return "it computes on CUDA devices alone, and there is none"
    return ""


def script_flags(method: str) -> list[str]:
    """The flags of a script."""
    return checkout.flags(f"defense/{method}.py")


def defaults(method: str) -> dict[str, Any]:
    """The flags that a user may set, with the values of the script's YAML file."""
    told = _yaml(method)
    return {flag: told.get(flag) for flag in script_flags(method) if flag not in OURS}


def _yaml(method: str) -> dict[str, Any]:
    folder = checkout.home() / "config" / "defense" / method
    files = [file for file in (folder / "cifar10.yaml", folder / "config.yaml") if file.exists()]
    return dict(yaml.safe_load(files[0].read_text("utf-8"))) if files else {}


def _result(made: Any, state: Mapping[str, Any], train: Images, net: Net) -> dict[str, Tensor]:
    """The weights of a ``defense_result.pt`` as the state of ``net``."""
    if not isinstance(made, dict) or not isinstance(made.get("model"), Mapping):
        raise InputError("its defense_result.pt holds no network")
    weights = folded(
        {str(name).removeprefix("module."): value for name, value in made["model"].items()}
    )
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
    return BackdoorBenchDefense(method=rest, flags=options)

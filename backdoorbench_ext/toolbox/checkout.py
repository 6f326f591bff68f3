"""The checkout of BackdoorBench that ``BACKDOORBENCH_HOME`` names."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, nearest

# attacks that only change images: BackdoorBench's dispatch gives their transforms
DISPATCH = ("badnet", "blended", "sig", "ctrl", "ftrojann", "ssba", "lc", "lf")

# whose scripts stand among our defenses: those of the first repair or train, those of the second
# suspect training images, those of the third test images
FOLDERS = ("defense", "detection_pretrain", "detection_infer")
# files there that are no script
PARTS = ("__init__", "base", "dataset_load_mode", "agpd_utils", "spectre_utils")
# why a script cannot stand in a table; in f02e353, July 2025
BROKEN = {
    "asset": "it shuffles the images whose losses it tells: none can be traced to an image",
    "bnp": "it imports defense.mbns, which the checkout has not",
    "ep": "it imports defense.dde, which the checkout has not",
    "nab": "it takes three values from its load_config, which gives one",
    "npd": "it saves the victim, not what it made of it",
    "scan_frac": "it makes its SCAn without its argument",
    "spectre": "it calls its get_features without its last argument",
}
# networks that a script has in a form of its own; others it does not take
NETWORKS = {
    "anp": (
        *("preactresnet18", "vgg19_bn", "densenet161", "mobilenet_v3_large", "efficientnet_b3"),
        *("convnext_tiny", "vit_b_16"),
    )
}
# scripts that take any network, and so ours; the others look into networks by their names
ANY_NETWORK = (
    *("abl", "anp", "clp", "fp", "ft", "ft-sam", "mcr", "nc", "rnp", "sau"),
    *("beatrix", "cd", "detection_pretrain.abl", "detection_pretrain.spectral", "scan", "strip"),
    *("detection_infer.strip", "teco"),
)
NEEDS_CUDA = ("d-st", "dbd", "i-bau", "lira", "sentinet")
# scripts that choose what they save by the test images, and how
CHOSEN_ON_TESTS = {
    "anp": "the masks with the least test ASR",
    "fp": "neurons pruned until test CA falls",
}
# detectors that give scores and no threshold
SCORES_ALONE = ("teco",)


def home() -> Path:
    """The folder of the checkout.

    Raises:
        InputError: ``BACKDOORBENCH_HOME`` is not set, or names no checkout.
    """
    named = os.environ.get("BACKDOORBENCH_HOME")
    if not named:
        raise InputError(
            "backdoorbench:NAME needs a checkout of BackdoorBench: set BACKDOORBENCH_HOME to its "
            "folder"
        )
    folder = Path(named).expanduser()
    if not (folder / "utils" / "aggregate_block").is_dir():
        raise InputError(f"BACKDOORBENCH_HOME={folder} is no checkout of BackdoorBench")
    return folder.resolve()


def flags(*files: str) -> list[str]:
    """The flags that some files of the checkout define, read from their source without running
    it.
    """
    with warnings.catch_warnings():
        # its source has escapes in strings that newer Pythons warn of
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        parsed = [ast.parse((home() / file).read_bytes()) for file in files]
    words = [
        argument.value
        for tree in parsed
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
    return list(dict.fromkeys(word[2:] for word in words if word.startswith("--")))


def check_name(name: str, known: Iterable[str], kind: str) -> None:
    """Raises: InputError: there is no checkout, or no script of that name in it."""
    if name not in known:
        home()
        raise nearest(name, known, f"{kind} of BackdoorBench")


def check_flags(name: str, given: Iterable[str], has: list[str], ours: tuple[str, ...]) -> None:
    """Raises: InputError: a flag that is ``ours`` to decide, or that the script does not have."""
    for flag in given:
        if flag in ours:
            raise InputError(f"{name}: {flag} is decided by the cell")
        if flag not in has:
            raise nearest(flag, [f for f in has if f not in ours], f"flags of {name}")


def refused(script: str) -> str:
    """Why a script cannot run here, "" if it can."""
    # a list of names needs no PyTorch
    import torch

    if script in BROKEN:
        return BROKEN[script]
    if script in NEEDS_CUDA and not torch.cuda.is_available():
        return "it computes on CUDA devices alone, and there is none"
    return ""


def attacks() -> dict[str, str]:
    """The attacks of the checkout and how each is run; none without a checkout."""
    if not os.environ.get("BACKDOORBENCH_HOME"):
        return {}
    files = sorted((home() / "attack").glob("*.py"))
    how = {
        True: "BackdoorBench's images, our training",
        False: "BackdoorBench's own script; its record is read back",
    }
    return {
        f"backdoorbench:{file.stem}": how[file.stem in DISPATCH]
        for file in files
        if file.stem != "prototype"
    }


def scripts() -> dict[str, str]:
    """The scripts that stand among our defenses, by name: where each lies in the checkout. A name
    that two folders have is the first one's, and FOLDER.NAME the other's.
    """
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for file in sorted((home() / folder).glob("*.py")):
            if file.stem not in PARTS:
                taken = file.stem in found
                name = f"{folder}.{file.stem}" if taken else file.stem
                found[name] = f"{folder}/{file.name}"
    return found


def settings(name: str) -> Path | None:
    """The YAML file that a script has for CIFAR-10, if it has one."""
    folder, _, file = scripts()[name].partition("/")
    kind = "defense" if folder == "defense" else "detection"
    stem = file.removesuffix(".py")
    place = home() / "config" / kind / stem
    return next((f for f in (place / "cifar10.yaml", place / "config.yaml") if f.exists()), None)


def defenses() -> dict[str, str]:
    """The defenses and detectors of the checkout and what is to be known of each; none without a
    checkout.
    """
    if not os.environ.get("BACKDOORBENCH_HOME"):
        return {}
    return {f"backdoorbench:{name}": _known_of(name, path) for name, path in scripts().items()}


def _known_of(name: str, path: str) -> str:
    if name in BROKEN:
        return f"cannot run: {BROKEN[name]}"
    words = ["BackdoorBench's own script"]
    folder = path.partition("/")[0]
    if folder != "defense":
        which = "training" if folder == "detection_pretrain" else "test"
        words = [f"BackdoorBench's own detector, of {which} images"]
    if name in NEEDS_CUDA:
        words.append("on a CUDA device")
    if name in CHOSEN_ON_TESTS:
        words.append(f"chosen on the test set: {CHOSEN_ON_TESTS[name]}")
    return "; ".join(words)


def chosen_on_tests(name: str) -> bool:
    """Whether what a defense of that name gives was chosen on the test images."""
    scheme, _, script = name.partition(":")
    return scheme == "backdoorbench" and script in CHOSEN_ON_TESTS

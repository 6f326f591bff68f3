"""What there is, by name and in a line each, read from the files without importing them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from . import metrics, registry, suite
from .errors import InputError
from .protocols import NETWORKS, PROTOCOLS
from .toolbox import checkout

KINDS = (
    "attacks",
    "defenses",
    "benchmarks",
    "models",
    "datasets",
    "protocols",
    "metrics",
    "executors",
)
DATASETS = {
    "digits": "scikit-learn's digits on noisy cards, 10 classes, 32x32, made here: no file needed",
    "cifar10": "10 classes, 32x32; 163 MiB",
    "gtsrb": "traffic signs, 43 classes, 32x32; 263 MiB",
    "cifar100": "100 classes, 32x32; 161 MiB",
    "svhn": "house numbers, 10 classes, 32x32; 235 MiB",
    "fashion_mnist": "clothes, 10 classes, 28x28 grey with a border to 32x32; 30 MiB",
    "tiny_imagenet": "200 classes of ImageNet, 64x64; unpack tiny-imagenet-200.zip yourself",
    "imagenette": "ten classes of ImageNet, 224x224; 1.45 GiB",
    "folder:PATH": "your own: train/<class>/*, and test/<class>/* or val/<class>/*",
    "npz:PATH": "your own: one file of uint8 images and labels",
}
# names of an axis that a line of ``runs`` has room for
MOST_NAMES = 4
MORE_MODELS = "and every name of timm; with a tag (tf_efficientnet_b0.aa_in1k) from those weights"


def names(kind: str) -> dict[str, str]:
    """Every name of a kind and one line on it."""
    if kind == "models":
        source = Path(__file__).with_name("networks.py")
        found = _functions(source, NETWORKS)
        for name, dotted in registry.modules(kind).items():
            file = registry.source(dotted)
            found |= _functions(file, (name,)) if file else {}
        return found | {"...": MORE_MODELS}
    if kind == "datasets":
        return DATASETS
    if kind == "protocols":
        return {name: str(protocol) for name, protocol in PROTOCOLS.items()}
    if kind == "metrics":
        return metrics.names()
    lines = {name: line(dotted) for name, dotted in registry.modules(kind).items()}
    theirs = {"attacks": checkout.attacks, "defenses": checkout.defenses}
    return lines | (theirs[kind]() if kind in theirs else {})


def runs(out: Path) -> dict[str, str]:
    """The folders of results below ``out``, and what each holds."""
    found = {}
    for file in sorted(out.glob(f"*/{suite.FILE}")):
        try:
            grid = suite.load(str(file.parent))
        except InputError as error:
            found[file.parent.name] = f"broken: {error}"
            continue
        cells = grid.unresolved()
        there = len(list(file.parent.rglob("rate*-seed*.json")))
        axes = {"data sets": grid.datasets, "attacks": grid.attacks, "defenses": grid.defenses}
        what = "; ".join(_few(values, called) for called, values in axes.items())
        found[file.parent.name] = f"{there} records, {len(cells)} cells: {what}"
    return found


def _few(names: Sequence[str], called: str) -> str:
    """The names without options, or how many there are."""
    short = dict.fromkeys(registry.parse(name)[0] for name in names)
    return ", ".join(short) if len(short) <= MOST_NAMES else f"{len(short)} {called}"


def line(dotted: str) -> str:
    """The first paragraph of a module's docstring; what is wrong with its file, if it is broken."""
    try:
        file = registry.source(dotted)
        return _paragraph(ast.get_docstring(ast.parse(file.read_bytes() if file else b"")))
    except (ImportError, OSError, ValueError, SyntaxError) as error:
        # one broken plugin must not hide the others
        return f"broken: {type(error).__name__}: {error}"


def check() -> list[str]:
    """A line for each file of a method that cannot be imported."""
    broken = []
    for kind in ("attacks", "defenses", "benchmarks", "executors"):
        for name in registry.modules(kind):
            try:
                registry.module(kind, name)
            except InputError as error:
                broken.append(str(error))
    return broken


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())


def _functions(file: Path, wanted: tuple[str, ...]) -> dict[str, str]:
    """The first paragraphs of some functions' docstrings."""
    tree = ast.parse(file.read_bytes())
    docs = {f.name: ast.get_docstring(f) for f in tree.body if isinstance(f, ast.FunctionDef)}
    return {name: _paragraph(docs[name]) for name in wanted}

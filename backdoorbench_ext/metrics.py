"""Metrics: what is counted in images, and what is derived from a record, and perhaps its baseline.

A plugin adds one with ``METRIC = Metric(...)``; ``--metrics ca,asr,der`` chooses among them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import registry
from .errors import nearest

Record = Mapping[str, Any]
# what runs count, image by image
COUNTED = ("ca", "asr", "arr")


@dataclass(frozen=True)
class Metric:
    """A number of a cell.

    Args:
        key: its name in records, options and tables of numbers.
        title: its name in tables and pictures.
        meaning: what the title stands for, and how it is counted.
        better: "higher" or "lower".
        of: the number, in percent, of a record and the record of No Defense in the same cell; None
            where it cannot be had, so that a table has a blank there.
    """

    key: str
    title: str
    meaning: str
    better: str
    of: Callable[[Record, Record | None], float | None]

    @property
    def higher(self) -> bool:
        return self.better == "higher"

    @property
    def arrow(self) -> str:
        """The direction that is good."""
        return "↑" if self.higher else "↓"


def share(key: str) -> Callable[[Record, Record | None], float | None]:
    """The percentage of a count."""

    def of(record: Record, _: Record | None) -> float | None:
        hits, n = record["metrics"].get(key, (0, 0))
        return 100 * hits / n if n else None

    return of


def der(record: Record, baseline: Record | None) -> float | None:
    """[max(0, ASR lost) - max(0, CA lost) + 1] / 2, in percent; nothing of No Defense itself."""
    if baseline is None or record is baseline:
        return None
    lost = {}
    for key in ("asr", "ca"):
        before = share(key)(baseline, None)
        now = share(key)(record, None)
        if before is None or now is None:
            return None
        lost[key] = max(0.0, before - now)
    return (lost["asr"] - lost["ca"] + 100) / 2


METRICS = {
    "ca": Metric(
        "ca", "CA", "clean accuracy: clean images given their class", "higher", share("ca")
    ),
    "asr": Metric(
        "asr",
        "ASR",
        "attack success rate: triggered images given the target",
        "lower",
        share("asr"),
    ),
    "arr": Metric(
        "arr", "ARR", "robust accuracy: triggered images given their class", "higher", share("arr")
    ),
    # Zhu et al. 2023, https://arxiv.org/abs/2304.11823, as BackdoorBench has it
    "der": Metric("der", "DER", "defense effectiveness rating against No Defense", "higher", der),
}


def names() -> dict[str, str]:
    """Every metric's key and its meaning."""
    known = {key: metric.meaning for key, metric in METRICS.items()}
    return known | {name: get(name).meaning for name in registry.modules("metrics")}


def get(key: str) -> Metric:
    """A metric, ours or a plugin's.

    Raises:
        InputError: nobody provides it.
    """
    if key in METRICS:
        return METRICS[key]
    plugins = registry.modules("metrics")
    if key not in plugins:
        raise nearest(key, [*METRICS, *plugins], "metrics")
    metric: Metric = registry.module("metrics", key).METRIC
    return metric


def pack(hits: Any) -> str:
    """A bool tensor or array (n,) as the base64 of its bits."""
    return base64.b64encode(np.packbits(np.asarray(hits.cpu(), dtype=bool)).tobytes()).decode()


def unpack(text: str, n: int) -> np.ndarray:
    """The first ``n`` of the bits that ``pack`` kept: bool (n,).

    Raises:
        ValueError: the text holds another number of bits.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8))
    if not n <= len(bits) < n + 8:
        raise ValueError(f"{len(bits)} bits of {n}")
    return bits[:n].astype(bool)


def suspicion(
    poisoned: np.ndarray, scores: np.ndarray, flagged: np.ndarray | None
) -> dict[str, float | None]:
    """How well scores find the poisoned images; None where there are none, or nothing else.

    Args:
        poisoned: bool (n,).
        scores: (n,), high where an image is suspected.
        flagged: bool (n,), which images were taken for poisoned; None if that was not said.

    Returns:
        "auroc", "tpr" and "fpr" in [0, 1].
    """
    from sklearn.metrics import roc_auc_score

    if not poisoned.any() or poisoned.all():
        return {"auroc": None, "tpr": None, "fpr": None}
    return {
        "auroc": float(roc_auc_score(poisoned, scores)),
        "tpr": None if flagged is None else float(flagged[poisoned].mean()),
        "fpr": None if flagged is None else float(flagged[~poisoned].mean()),
    }

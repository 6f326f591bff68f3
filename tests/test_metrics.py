"""Metrics: counted, derived, a plugin's; bits image by image; records of the first format."""

import base64

import numpy as np
import pytest
import torch
from conftest import here
from sklearn.metrics import roc_auc_score
from test_tables import RECORDS, SUITE, record

from backdoorbench_ext import frame, metrics, plots, records, registry, tables
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.layout import Style

TOY = '''
"""The share of triggered images that get neither label, as an example of a metric."""

from backdoorbench_ext.metrics import Metric


def other(record, baseline):
    asr, n = record["metrics"]["asr"]
    return 100 * (n - asr - record["metrics"]["arr"][0]) / n if n else None


METRIC = Metric("lost", "Lost", "triggered images given neither label", "lower", other)
'''


def test_der_by_hand():
    """ASR falls by 99 points and CA by 2: (99 - 2 + 100) / 2; a CA that rises counts nothing, and
    No Defense has none.
    """
    der = metrics.get("der")
    none, cbd, mcci = RECORDS[:3]
    assert der.of(cbd, none) == pytest.approx((99 - 2 + 100) / 2)
    better = record("badnets", "x", 950, 900, 0)
    assert der.of(better, none) == pytest.approx(50), "nothing won, nothing lost"
    assert der.of(none, none) is None and der.of(mcci, None) is None
    rows = frame.values(RECORDS, [der])
    assert [round(row["der"], 2) for row in rows[1:3]] == [98.5, 99.0]
    assert rows[0]["der"] != rows[0]["der"], "nan"


def test_a_metric_that_a_record_lacks_is_a_blank():
    less = {k: v for k, v in RECORDS[1]["metrics"].items() if k != "arr"}
    some = [RECORDS[0], RECORDS[1] | {"metrics": less}, *RECORDS[2:]]
    lines = tables.render(some, SUITE, "markdown").splitlines()
    assert "| <u>88.00</u> | **1.00** | -- |" in lines[2] and "nan" not in "".join(lines)
    assert plots.bars(some, SUITE) and plots.heatmap(some, SUITE)
    text = tables.render(some, SUITE, "latex", style=Style((metrics.get("ca"), metrics.get("der"))))
    assert r"CA $\uparrow$ & DER $\uparrow$" in text and "nan" not in text
    assert r"BadNets & 90.00 & -- & \underline{88.00} & \underline{98.50}" in text


def test_a_plugin_is_a_metric(tmp_path, monkeypatch, capsys):
    """One file, no edit elsewhere: it is listed, tabulated and drawn."""
    monkeypatch.setattr(registry, "_plugins", {})
    assert len(TOY.strip().splitlines()) < 30
    file = tmp_path / "lost.py"
    file.write_text(TOY)
    assert here("list", "metrics", "--plugin", file) == 0
    assert "given neither label" in capsys.readouterr().out
    SUITE.save(tmp_path / "paper")
    cells = {(c.attack, c.defense): c for c in SUITE.cells()}
    for one in RECORDS:
        cell = cells[one["cell"]["attack"], one["cell"]["defense"]]
        records.write(tmp_path / "paper" / cell.path, one | {"spec": cell.spec})
    # a process of its own knows no plugin yet, whichever option is written first
    monkeypatch.setattr(registry, "_plugins", {})
    words = (tmp_path / "paper", "--metrics", "ca,lost", "--plugin", file)
    assert here("table", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "MCCI Lost ↓" in lines[0]
    assert lines[2].startswith("| BadNets | 90.00 | 0.00 | <u>88.00</u> | <u>10.00</u> |")
    assert here("plot", "heatmap", *words, "--format", "png") == 0
    assert here("table", tmp_path / "paper", "--metrics", "ca,los") == 2
    assert "no 'los' among the metrics. Did you mean 'lost'" in capsys.readouterr().err


def test_bits_image_by_image():
    """Ten images: a bit each, the first the highest; 10,000 take 1.7 KB."""
    hits = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1, 0], dtype=torch.bool)
    text = metrics.pack(hits)
    assert base64.b64decode(text) == bytes([0b10000001, 0b10000000])
    assert metrics.unpack(text, 10).tolist() == hits.tolist()
    assert len(metrics.pack(torch.ones(10_000, dtype=torch.bool))) < 1700
    kept = {"metrics": {"ca": [3, 10]}, "hits": {"ca": text}}
    assert records.hits(kept, "ca").tolist() == hits.tolist()
    assert records.hits({"metrics": {"ca": [3, 10]}}, "ca") is None, "format 1 has counts alone"
    for n, count in ((10, 4), (20, 3)):
        with pytest.raises(ValueError, match="bits"):
            records.hits({"metrics": {"ca": [count, n]}, "hits": {"ca": text}}, "ca")


def test_suspicion_is_sklearns():
    poisoned = np.array([1, 1, 0, 0, 0], dtype=bool)
    scores = np.array([0.9, 0.2, 0.5, 0.1, 0.2])
    found = metrics.suspicion(poisoned, scores, scores > 0.4)
    # of six pairs the poisoned image is higher in four, equal in one
    assert found == {"auroc": pytest.approx(4.5 / 6), "tpr": 0.5, "fpr": pytest.approx(1 / 3)}
    assert found["auroc"] == pytest.approx(roc_auc_score(poisoned, scores))
    nothing = metrics.suspicion(np.zeros(5, bool), scores, scores > 0.4)
    assert nothing == {"auroc": None, "tpr": None, "fpr": None}


def test_unknown_metric():
    with pytest.raises(InputError, match="Did you mean 'asr'"):
        metrics.get("ars")

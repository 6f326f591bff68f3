"""The scripts behind the results pages, on a handful of digits."""

import sys

import numpy as np
import pytest
import torch
from conftest import RULES
from scipy.fftpack import dct
from test_tables import record

from backdoorbench_ext import models, records
from backdoorbench_ext.benchmarks.looks import (
    channels,
    first,
    isolation,
    mcci_release,
    one_image,
    spectra,
)
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.files import write_whole
from backdoorbench_ext.frequency import dct2
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite
from backdoorbench_ext.work import run_cell

# networks with the names that MCCI's release gives its own; written for this test
RELEASE = """
import core
import torch
from torch import nn


class Pair(nn.Module):
    def __init__(self, depth, d, size, classes):
        super().__init__()
        self.normal_model = nn.Sequential(nn.Flatten(), nn.LazyLinear(d))
        self.attack_model = nn.Sequential(nn.Flatten(), nn.LazyLinear(d))
        self.concat_layer = nn.Linear(2 * d, classes)

    def forward(self, x, spectrum):
        pair = self.normal_model(x), self.attack_model(spectrum)
        return self.concat_layer(torch.cat(pair, 1))


detector_model = Pair
"""


def lab(tmp_path, defense, attack="badnets"):
    grid = Suite("looks", RULES, ("digits[train=300,test=60]",), (attack,), (defense,))
    (cell,) = grid.cells()
    return Lab(cell, Options(out=tmp_path, device="cpu"))


def test_channels(tmp_path):
    """With all channels cut, every image gets the same answer."""
    rows = channels.look(lab(tmp_path, "fp"))
    victim = lab(tmp_path, "fp").engine().victim()
    assert sorted(channel for channel, *_ in rows) == list(range(victim.num_features))
    _, _, ca, asr = rows[-1]
    bias = int(victim.head(torch.zeros(1, victim.num_features)).argmax())
    here = lab(tmp_path, "fp")
    assert ca == pytest.approx(100 * float((here.test.y == bias).float().mean()))
    assert asr == (100 if bias == RULES.target else 0)


def test_isolation(tmp_path):
    here = lab(tmp_path, "abl")
    rows = isolation.look(here, 3, here.defense)
    assert len(rows) == 3
    assert all(0 <= share <= 100 and bad > 0 and clean > 0 for share, bad, clean in rows)


def test_spectra(tmp_path):
    """Of what is smoother there is less in the upper half; one coefficient is counted by hand."""
    cell = lab(tmp_path, "mcci", "blurred[kernel=average]")
    norms = spectra.look(cell)
    assert norms["mean spectrum"] < norms["clean images"]
    assert norms["triggered images"] < norms["clean images"]
    # the image that MCCI's "sg" is given
    given = cell.engine().clean(1).x
    assert norms["one clean image"] == float(spectra.upper(dct2(given.float())))
    one = torch.zeros(1, 1, 8, 8)
    one[0, 0, 3, 1] = 3
    one[0, 0, 1, 1] = 9
    assert float(spectra.upper(one)) == 3


def test_one_image(tmp_path):
    """Told the image that the cell was given, it answers as the cell's record says."""
    here = lab(tmp_path, "mcci[inference=sg]")
    with pytest.raises(InputError, match="no network; bbx run --save-models keeps it"):
        one_image.network(here, tmp_path)
    with pytest.raises(InputError, match="cbd is told no spectrum"):
        one_image.network(lab(tmp_path, "cbd"), tmp_path)
    result = run_cell(here)
    kept = models.pack(result.net, here.rules.model)
    write_whole((tmp_path / here.cell.path).with_suffix(".safetensors"), kept)
    found = one_image.look(one_image.network(here, tmp_path), here)
    assert len(found.norm) == len(here.reserve) > 10
    for name, own in (("ca", found.ca), ("asr", found.asr), ("arr", found.arr)):
        hits, n = result.record["metrics"][name]
        assert float(own[0]) == pytest.approx(100 * hits / n)
    assert found.ca.unique().numel() > 1, "another image, other answers"
    one_image.draw(found, here, tmp_path / "asr.png")
    assert (tmp_path / "asr.png").stat().st_size > 5000


def test_first(tmp_path, capsys, monkeypatch):
    """By the early loss; what two suites have counts once, what was not looked into not at all."""
    for folder, losses, asr in (("a", [5, 2.0], 90), ("b", [1e-6], 3), ("c", [5, 2.0], 90)):
        one = record("badnets", "cbd", 80, asr, 0, seed=len(losses))
        one["curves"] = {first.CURVES["cbd"].name: losses}
        records.write(tmp_path / folder / "rate0.1-seed0-x.json", one)
    records.write(tmp_path / "d" / "rate0.1-seed0-x.json", record("badnets", "cbd", 80, 50, 0))
    for seed, told in enumerate(("avg", "sg", "avg")):
        one = record("blend", f"mcci[inference={told}]", 70, 45, 0, seed=seed)
        one["spec"]["defense"]["inference"] = told
        # of the last the second epoch is not there
        one["curves"] = {first.CURVES["mcci"].name: [3, 0.25, 9][: 3 - seed]}
        records.write(tmp_path / "m" / f"rate0.1-seed{seed}-x.json", one)

    def said(defense):
        words = ["x", defense, str(tmp_path), "--picture", str(tmp_path / f"{defense}.png")]
        monkeypatch.setattr(sys, "argv", words)
        first.main()
        assert (tmp_path / f"{defense}.png").stat().st_size > 5000
        return [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]

    assert said("cbd") == [["0.000", "8.0", "0.3"], ["2.000", "8.0", "10.0"]]
    assert said("mcci") == [["0.250", "7.0", "5.0"]]
    with pytest.raises(InputError, match="no records of it that bbx run --audit has made"):
        first.look(first.CURVES["cbd"], tmp_path / "d")


def test_bad_input_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["spectra", "demo", "nothing"])
    with pytest.raises(SystemExit) as ended:
        spectra.main()
    assert ended.value.code == 2
    words = "no cell of demo has 'nothing' in its path; `bbx run demo --dry-run` shows them"
    assert capsys.readouterr().err == f"error: {words}\n"


def test_mcci_beside_a_release(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "core" / "models"
    with pytest.raises(InputError, match="no such file; --release is a checkout"):
        mcci_release.networks(tmp_path)
    folder.mkdir(parents=True)
    (folder / "backdoor_backdoor.py").write_text(RELEASE)
    words = ["x", "demo", "badnets mcci", "--epochs", "1", "--device", "cpu"]
    words += ["--out", str(tmp_path), "--release", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(mcci_release, "lab_of", lambda _: lab(tmp_path, "mcci[images=4]"))
    mcci_release.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20].strip() for line in lines[1:]] == list(mcci_release.WAYS)
    assert "core" not in sys.modules
    # the release's spectrum is ours, of bytes
    x = torch.rand(2, 3, 8, 8)
    pixels = (x * 255).numpy().astype("uint8")
    theirs = dct(dct(pixels, axis=-2, norm="ortho"), axis=-1, norm="ortho")
    assert np.allclose(mcci_release.spectrum(x), theirs, atol=1e-3)
    assert torch.allclose(
        dct2(torch.from_numpy(pixels).float()), torch.tensor(theirs).float(), atol=1e-3
    )

"""``import backdoorbench_ext as bbx``: the numbers of ``bbx run``, and the README's example."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import IDLE, RULES, here

import backdoorbench_ext as bbx
from backdoorbench_ext import registry
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.suite import Suite

DATA = "digits[train=200,test=60]"


def test_steps_give_the_numbers_of_a_run(tmp_path):
    """A method may be a name or an object, with options; what is not its default is its name."""
    defense = bbx.defense("cbd", t1_steps=2)
    lab = bbx.poison(
        bbx.attack("badnets", size=4), DATA, seed=1, protocol=RULES, device="cpu", out=tmp_path
    )
    assert lab.cell.attack == "badnets[size=4]"
    assert int(lab.poisoned.mask.sum()) == round(0.1 * len(lab.poisoned))
    names = ("none", "cbd[t1_steps=2]", "fp")
    suite = Suite("grid", RULES, (DATA,), ("badnets[size=4]",), names, seeds=(1,))
    frame = bbx.run(suite, device="cpu", out=tmp_path)
    told = {row["defense"]: row for row in frame.to_dict("records")}
    for one in ("none", defense, "fp"):
        net = bbx.train(one, lab)
        numbers = bbx.evaluate(net, lab)
        row = told[one if isinstance(one, str) else "cbd[t1_steps=2]"]
        assert numbers == {name: pytest.approx(row[name]) for name in ("ca", "asr", "arr")}
    assert not net.training and net(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    again = bbx.results(tmp_path / "grid", metrics=["ca", "der"])
    assert list(again["ca"]) == list(frame["ca"]) and "der" in again


def test_a_plugin(tmp_path, monkeypatch):
    """A defense of one's own, in steps and in a grid whose workers are processes."""
    monkeypatch.setattr(registry, "_plugins", {})
    file = tmp_path / "idle.py"
    file.write_text(IDLE)
    bbx.plugin(file)
    # workers know none of the tests' networks
    rules = replace(RULES, model="cnn5")
    lab = bbx.poison("badnets", DATA, protocol=rules, device="cpu", out=tmp_path)
    numbers = bbx.evaluate(bbx.train("idle", lab), lab)
    grid = Suite("grid", rules, (DATA,), ("badnets",), ("idle",))
    (row,) = bbx.run(grid, device="cpu", out=tmp_path, jobs=2).to_dict("records")
    assert {name: pytest.approx(row[name]) for name in numbers} == numbers
    with pytest.raises(InputError, match="no such file"):
        bbx.plugin(tmp_path / "lost.py")


def test_kept_networks_and_errors(tmp_path):
    words = ("run", "--dataset", DATA, "--attacks", "badnets", "--defenses", "none,mcci[images=2]")
    words += ("--model", "bbx_test", "--epochs", 1, "--device", "cpu", "--jobs", 1)
    assert here(*words, "--save-models", "--out", tmp_path) == 0
    kept = {file.parent.name: file for file in tmp_path.glob("own*/**/rate*.safetensors")}
    assert bbx.load_model(kept["none"])(torch.rand(1, 3, 8, 8)).shape == (1, 10)
    train, test = bbx.load_data(DATA)
    assert train.x.dtype == torch.uint8 and (len(train), len(test)) == (200, 60)
    for call, says in (
        (lambda: bbx.load_model(kept["mcci[images=2]"]), "its defense alone can build"),
        (lambda: bbx.attack("badnet"), "Did you mean 'badnets'"),
        (lambda: bbx.defense("cbd", betta=1), "Did you mean 'beta'"),
        (lambda: bbx.poison("badnets", DATA, protocol="cdb"), "Did you mean 'cbd'"),
        (lambda: bbx.poison("badnets", DATA, rate=0.0), "rate"),
        (lambda: bbx.results(tmp_path / "lost"), "no '.*lost' among"),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_it_is_light_and_says_what_it_has():
    """PyTorch is imported when it is needed, not before."""
    code = "import sys, backdoorbench_ext as b; print('torch' in sys.modules, *dir(b))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light, *names = done.stdout.split()
    assert light == "False" and {"attack", "poison", "train", "run"} <= set(names)
    assert "os" not in names
    with pytest.raises(AttributeError, match="no attribute 'posion'"):
        _ = bbx.posion


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_examples(page, tmp_path, monkeypatch, capsys):
    """Their own words, on fewer images."""
    file = Path(__file__).parents[1] / page
    if not file.exists():
        pytest.skip("not a checkout: no documentation")
    (code,) = re.findall(r"```python\n(.*?)```", file.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    short = '"digits[train=200,test=60]", device="cpu", epochs=1, protocol'
    small = code.replace('"digits", protocol', short).replace("lr=1.0]", "lr=1.0,images=9]")
    assert short in small
    exec(compile(small, page, "exec"), {})
    assert "'asr'" in capsys.readouterr().out

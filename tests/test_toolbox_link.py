"""Our methods among BackdoorBench's scripts, in a checkout of a few lines that is ours."""

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import here
from test_toolbox import TINY, clean_sets, content, npz, saved

from backdoorbench_ext.errors import InputError
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite
from backdoorbench_ext.toolbox import attack_script, interface, link, record


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout with a script of its own, which is the working directory."""
    home = tmp_path / "home"
    for file in ("utils/aggregate_block/x.py", "attack/wanet.py", "defense/ft.py"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text("its own")
    npz(home / "data", *clean_sets())
    monkeypatch.chdir(home)
    return home


def run(script, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, *words.split()])
    runpy.run_path(script, run_name="__main__")


def test_attacked_and_defended_there(home, monkeypatch):
    """Written, run as its README says of its own, and taken away again."""
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    assert here("link", str(home)) == 0
    words = "--pratio 0.1 --save_folder_name dyn --dataset cifar10 --random_seed 2"
    words += " --model shufflenet_v2_x1_0 --epochs 1 --dynamic_epochs 1 --mask_epochs 1"
    words += " --bd_yaml_path config/attack/dynamic/default.yaml --device cuda:0,1"
    run("attack/dynamic.py", words, monkeypatch)
    made = record.read(Path("record/dyn"))
    assert made.rate == pytest.approx(0.1, abs=0.02) and made.targets == [0]
    reserve = np.loadtxt("record/dyn/reserve.txt", dtype=int)
    assert not made.train.replaced[reserve].any()
    words = "--result_file dyn --yaml_path ./config/defense/cbd/cifar10.yaml --dataset cifar10"
    words += " --epochs 2 --t1 1 -nb True -pm False --model shufflenet_v2_x1_0"
    words += " --index record/dyn/reserve.txt"
    run("defense/cbd.py", words, monkeypatch)
    told = json.loads(Path("record/dyn/defense/cbd/record.json").read_text())
    assert told["spec"]["protocol"]["recipe"]["epochs"] == 2 and told["spec"]["defense"]["t1"] == 1
    # the first epochs of f_B, then two of f_C
    row = Path("record/dyn/defense/cbd/cbd_df.csv").read_text().splitlines()[1]
    assert row.startswith("1,1,")
    assert here("link", str(home), "--undo") == 0
    left = {f for f in home.rglob("*") if f.is_file() and f.relative_to(home).parts[0] != "record"}
    assert left == set(before) and all(f.read_bytes() == text for f, text in before.items())


def test_a_script_of_its_own_on_new_libraries(home):
    """What NumPy has dropped is there again, and its own folder is searched."""
    (home / "defense" / "beside.py").write_text("word = 'found'")
    (home / "defense" / "ft.py").write_text(
        "import sys\nimport numpy as np\nimport beside\n"
        "open('said', 'w').write(f'{beside.word} {np.float(2)} {sys.argv[1:]}')\n"
        "assert len(np.asarray([[1], [2, 3]])) == 2\n"
    )
    words = [sys.executable, "-m", "backdoorbench_ext.toolbox.launch"]
    subprocess.run([*words, "defense/ft.py", "--lr", "1"], check=True)
    assert Path("said").read_text() == "found 2.0 ['--lr', '1']"
    for wrong, says in ((["no.py"], "no.py: no such file"), ([], "usage")):
        done = subprocess.run([*words, *wrong], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and says in done.stderr


def test_what_link_leaves_alone(home, capsys):
    link.link(home)
    again = link.link(home)
    assert all(link.MARK in file.read_text() for file in again)
    assert (home / "defense/ft.py").read_text() == "its own"
    names = {file.name for file in again if file.parent.name == "attack"}
    assert "badnets.py" in names and not names & {"wanet.py", "none.py"}
    link.unlink(home)
    settings = home / "config/defense/cbd/cifar10.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("a user's")
    assert here("link", str(home)) == 2
    assert "is there already, and not ours" in capsys.readouterr().err
    assert not (home / "defense/cbd.py").exists()
    assert here("link", str(home / "attack")) == 2
    assert "no checkout of BackdoorBench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "settings", "flags", "options", "lr"),
    [
        ("mcci", {"lr": 0.02, "images": 7}, {}, {"images": 7}, 0.02),
        # said to the method, and so not of the training
        ("mcci", {"lr": 0.02}, {"lr": 0.5}, {"lr": 0.5}, 0.02),
        ("nad", {"te_epochs": 3, "epochs": 9, "beta1": 500}, {}, {"teacher_epochs": 3}, 0.01),
        ("i_bau", {"n_rounds": 4, "K": 5, "lr": 0.02}, {}, {"rounds": 4}, 0.02),
        ("abl", {"finetuning_epochs": 30, "epochs": 100}, {}, {"epochs": 30}, 0.01),
    ],
)
def test_what_yaml_means(method, settings, flags, options, lr, home):
    """What every script there has means the training; its names of options are ours."""
    folder = Path("record/made")
    saved(folder, content(folder))
    Path("its.yaml").write_text(yaml.safe_dump(settings))
    script = interface.DEFENSES[method](argparse.Namespace(yaml_path="its.yaml", **flags))
    assert script.options == options
    script.set_result("made")
    recipe = script.cell().rules.recipe
    assert (recipe.lr, recipe.epochs) == (lr, settings.get("epochs", 100))


def test_flags_of_an_attack():
    given = {"pratio": 0.2, "attack_target": 1, "lr": 0.3, "epochs": 4, "issba_epochs": 9}
    cell = attack_script.cell("issba", given | {"attack_label_trans": "all2all"})
    attack = cell.method("attacks")
    assert (cell.rate, cell.rules.target, cell.rules.recipe.lr) == (0.2, 1, 0.3)
    assert (attack.epochs, attack.label_mode, cell.rules.recipe.epochs) == (9, "all-to-all", 4)
    with pytest.raises(InputError, match="Did you mean 'all2all'"):
        attack_script.cell("badnets", {"attack_label_trans": "all2al"})
    with pytest.raises(InputError, match="Did you mean 'badnets'"):
        attack_script.main(["badnet"])
    with pytest.raises(InputError, match="--save_folder_name NAME is missing"):
        attack_script.main(["badnets"])


def test_a_record_brings_its_reserve(home):
    """``reserve.txt`` beside it, or the file of ``index``; otherwise the protocol's."""
    folder = Path("record/made")
    saved(folder, content(folder))
    options = Options(out=home / "runs", data=home / "data", device="cpu")

    def held(name):
        suite = Suite("grid", TINY, ("cifar10",), (name,), ("none",), rates=(0.05,))
        lab = Lab(suite.cells()[0], options)
        assert torch.equal(lab.poisoned.x.cpu(), every[~lab.held])
        return lab.held.nonzero().flatten().tolist()

    every = record.read(folder).poisoned("train", clean_sets()[0]).x
    assert len(held(f"record:{folder}")) == 8
    (folder / "reserve.txt").write_text("3\n11\n")
    assert held(f"record:{folder}") == [3, 11]
    Path("other.txt").write_text("5\n")
    assert held(f"record:{folder}[index=other.txt]") == [5]
    for text in ("", "1\n1\n", "80\n", "-1\n", "x\n"):
        Path("other.txt").write_text(text)
        with pytest.raises(InputError, match="must hold") as error:
            held(f"record:{folder}[index=other.txt]")
        assert "\n" not in str(error.value)

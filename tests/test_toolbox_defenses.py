"""BackdoorBench's defenses in our grid, with a checkout of a few lines that is ours."""

import json
import os
from dataclasses import replace

import pytest
import torch
from conftest import here
from test_toolbox import TINY, clean_sets, npz

from backdoorbench_ext import layout, records, tables
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite
from backdoorbench_ext.toolbox import checkout, defenses
from backdoorbench_ext.work import run_cell

# what scripts import of the checkout; the sets are as BackdoorBench's in what is used of them
SOURCE = """
def get_num_classes(dataset):
    raise AssertionError("answered by us")
get_input_shape = get_dataset_normalization = get_num_classes
def get_transform(dataset, height, width, train):
    return dataset, height, width, train
"""
SETS = """
class dataset_wrapper_with_transform:
    def __init__(self, dataset, change):
        self.wrapped_dataset, self.change = dataset, change
class prepro_cls_DatasetBD_v2:
    def __init__(self, dataset):
        self.dataset, self.places, self.samples = dataset, list(range(len(dataset))), {}
    def subset(self, places):
        self.places = places.tolist()
    def set_one_bd_sample(self, i, image, label, true):
        self.samples[i] = image, label, true
"""
SCRIPT = """
import argparse, json, sys
from pathlib import Path
import numpy as np
import torch
import yaml
from utils.aggregate_block.dataset_and_transform_generate import get_num_classes
from utils.save_load_attack import load_attack_result

parser = argparse.ArgumentParser()
parser.add_argument("--device")
parser.add_argument("--dataset")
parser.add_argument("--dataset_path")
parser.add_argument("--result_file")
parser.add_argument("--yaml_path")
parser.add_argument("--index")
parser.add_argument("--model")
parser.add_argument('--random_seed', type=int)
parser.add_argument('--lr', type=float, default=7.0)
parser.add_argument("-pm", '--pin_memory')
parser.add_argument('--epochs', type=int)
args = parser.parse_args()
told = yaml.safe_load(Path(args.yaml_path).read_text())
if args.epochs == 13:
    print("step 1"); print("no luck"); sys.exit(3)
attack = load_attack_result(f"record/{args.result_file}/attack_result.pt")
clean, bad = attack["clean_train"].wrapped_dataset, attack["bd_test"].wrapped_dataset
train = attack["bd_train"].wrapped_dataset
index = np.loadtxt(args.index, dtype=int)
net = {"module." + name: value for name, value in attack["model"].items()}
bias = net.pop("module.fc.bias") + args.lr
net["module.fc.bias_orig"] = bias
net["module.fc.bias_mask"] = torch.tensor([1.0, 0.0, 1.0, 1.0])
to = Path("record") / args.result_file / "defense" / "ft"
to.mkdir(parents=True)
rows = (",test_acc,test_asr,test_ra", "last,0.5,0.25,0.75", "valid_max,0.9,0.9,0.9", "")
(to / "ft_df_summary.csv").write_text("\\n".join(rows))
(to / "later_df.csv").write_text("test_acc,test_asr,test_ra\\n0.1,0.1,0.1\\n")
torch.save({"model_name": attack["model_name"], "num_classes": 4, "model": net},
           to / "defense_result.pt")
Path(told["seen"]).write_text(json.dumps({
    "reserve": [clean.data[i].tolist() for i in index],
    "labels": train.dataset.targets, "places": train.places, "marked": len(train.samples),
    "triggered": [[label, true] for _, label, true in bad.samples.values()],
    "settings": told, "flags": vars(args), "classes": get_num_classes("x"),
}))
"""

# builds the network anew, as many scripts there do
BUILT = """
import argparse, json
from pathlib import Path
import torch
import yaml
from utils.aggregate_block.model_trainer_generate import generate_cls_model
from utils.save_load_attack import load_attack_result

parser = argparse.ArgumentParser()
parser.add_argument("--dataset")
parser.add_argument("--model")
parser.add_argument("--result_file")
parser.add_argument("--yaml_path")
args, _ = parser.parse_known_args()
told = yaml.safe_load(Path(args.yaml_path).read_text())
attack = load_attack_result(f"record/{{args.result_file}}/attack_result.pt")
net = generate_cls_model(args.model, 4)
started = net.fc.bias.sum().item(), attack["model"]["fc.bias"].sum().item()
net.load_state_dict(attack["model"])
weights = net.state_dict()
weights["fc.bias"] = weights["fc.bias"] + 1
seen = {{"name": args.model, "network": type(net).__name__, "start": started}}
{more}
torch.save({{"model_name": args.model, "num_classes": 4, "model": weights}},
           Path("record") / args.result_file / "defense_result.pt")
Path(told["seen"]).write_text(json.dumps(seen))
"""
MASKS = """
class Masked(torch.nn.BatchNorm2d):
    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.mask = torch.nn.Parameter(torch.ones(self.num_features))

from utils.defense_utils.anp.anp_model.preact_anp import PreActResNet18
masked = PreActResNet18(num_classes=4, norm_layer=Masked)
seen["masks"] = [name for name, _ in masked.named_parameters() if "mask" in name]
seen["eps"] = [norm.eps for norm in masked.modules() if isinstance(norm, Masked)]
"""
TRAINER = """
class PureCleanModelTrainer:
    def __init__(self, model):
        self.model = model
    def train_with_test_each_epoch_on_mix(self, epochs):
        self.model.fc.bias.data += epochs
"""
SAVER = """
def save_defense_result(model, save_path):
    import torch
    torch.save({"model_name": "preactresnet18", "num_classes": 4, "model": model}, save_path)
"""
FORGETS = """
from utils.save_load_attack import save_defense_result
from utils.trainer_cls import PureCleanModelTrainer
trained = generate_cls_model(args.model, 4)
trained.load_state_dict(attack["model"])
PureCleanModelTrainer(trained).train_with_test_each_epoch_on_mix(epochs=7)
folder = Path("record") / args.result_file / "before"
folder.mkdir()
save_defense_result(model=attack["model"], save_path=folder / "defense_result.pt")
"""

# calls scikit-learn as the detectors there do; FOUND is what it suspects
DETECTOR = """
import argparse, json
import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn import metrics
from utils.save_load_attack import load_attack_result

parser = argparse.ArgumentParser()
for flag in ("device", "dataset", "dataset_path", "result_file", "yaml_path", "model"):
    parser.add_argument("--" + flag)
parser.add_argument("--random_seed", type=int)
parser.add_argument("--clean_sample_num", type=int)
parser.add_argument("--csv_save_path")
args = parser.parse_args()
attack = load_attack_result(f"record/{args.result_file}/attack_result.pt")
train, tests = attack["bd_train"].wrapped_dataset, attack["bd_test"].wrapped_dataset
clean = attack["clean_test"].wrapped_dataset
open(args.csv_save_path, "a").close()
FOUND
"""
OF_TRAINING = """
assert not train.samples, "somebody is marked"
scores = np.array([train.dataset.data[i][-1, -1].mean() for i in train.places])
true = np.zeros(len(train.places))
assert args.clean_sample_num == len(clean) == len(tests.samples)
assert np.isnan(metrics.auc(*metrics.roc_curve(true, scores)[:2]))
metrics.roc_auc_score(true, scores)
tn, fp, fn, tp = confusion_matrix(true, scores > 250).ravel()
assert fn == tp == 0 and fp == (scores > 250).sum()
"""
OF_TESTS = """
true = np.r_[np.ones(len(tests.samples)), np.zeros(2)]
metrics.roc_auc_score(true, true)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder that looks like a checkout, whose ``ft`` writes down what it is given."""
    home = tmp_path / "home"
    for file, text in {
        "utils/aggregate_block/dataset_and_transform_generate.py": SOURCE,
        "utils/aggregate_block/model_trainer_generate.py": "def generate_cls_model(): pass\n",
        "utils/bd_dataset_v2.py": SETS,
        "utils/save_load_attack.py": "def load_attack_result(path):\n    raise AssertionError\n",
        "config/defense/ft/cifar10.yaml": f"seen: {tmp_path / 'seen.json'}\nlr: 0.1\nepochs: 9\n",
        "defense/base.py": "",
        "defense/ft.py": SCRIPT,
        # an escape that newer Pythons warn of
        "defense/anp.py": SCRIPT + "\ntold = '\\s'\n",
        "detection_pretrain/ft.py": DETECTOR.replace("FOUND", OF_TRAINING),
        "detection_pretrain/agpd_utils.py": "",
        "detection_infer/teco.py": DETECTOR.replace("FOUND", OF_TESTS),
        "detection_infer/strip.py": DETECTOR.replace("FOUND", ""),
        "defense/bnp.py": "",
    }.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(text)
    monkeypatch.setenv("BACKDOORBENCH_HOME", str(home))
    return home


def add(home, method, script):
    """A script, with the settings of ``ft``."""
    (home / f"defense/{method}.py").write_text(script)
    to = home / f"config/defense/{method}/cifar10.yaml"
    to.parent.mkdir(parents=True)
    to.write_text((home / "config/defense/ft/cifar10.yaml").read_text())


def grid(*names):
    return Suite("grid", TINY, ("cifar10",), ("badnets[size=2]",), names)


def lab(name, tmp_path):
    data = npz(tmp_path / "data", *clean_sets())
    options = Options(out=tmp_path / "runs", data=data, device="cpu")
    return Lab(grid(name).cells()[0], options)


def test_a_script_is_given_what_the_cell_has(home, tmp_path):
    """Images as observed, the reserve as the clean ones, the test sets, our victim; who is poisoned
    is not told; what it saves comes back, masks folded.
    """
    before = sorted(home.rglob("*"))
    own = lab("backdoorbench:ft[lr=0.5]", tmp_path)
    engine = own.engine()
    net = own.defense.fit(own.poisoned.observed(), engine)
    seen = json.loads((tmp_path / "seen.json").read_text())
    clean = own.engine().clean()
    assert seen["reserve"] == clean.x.permute(0, 2, 3, 1).tolist()
    n = len(own.poisoned)
    assert seen["labels"] == own.poisoned.y.tolist()
    assert seen["places"] == list(range(n)) and seen["marked"] == 0
    assert seen["triggered"] == [[0, int(true)] for true in own.triggered.true]
    # its YAML file, our plain settings, the user's flags, in this order; argparse's defaults are
    # overruled
    assert seen["settings"]["lr"] == seen["flags"]["lr"] == 0.5
    assert seen["settings"]["epochs"] == 9 and seen["settings"]["pin_memory"] is False
    assert seen["flags"]["device"] == "cpu" and seen["flags"]["model"] == "shufflenet_v2_x1_0"
    assert seen["flags"]["random_seed"] == engine.seed % 2**31 and seen["classes"] == 4
    victim = engine.victim().state_dict()
    expected = (victim["backbone.fc.bias"] + 0.5) * torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert torch.equal(net.state_dict()["backbone.fc.bias"], expected)
    same = [name for name in victim if name != "backbone.fc.bias"]
    assert all(torch.equal(net.state_dict()[name], victim[name]) for name in same)
    curves = engine.log_book.curves
    assert (curves["its CA"], curves["its ASR"], curves["its ARR"]) == ([50.0], [25.0], [75.0])
    assert not engine.bf16, "measured as it was trained"
    assert engine.log_book.seconds["ft.py"] > 0 and engine.log_book.clean_given == len(own.reserve)
    assert sorted(home.rglob("*")) == before, "it wrote into the checkout"


def test_a_detector_of_training_images(home, tmp_path):
    """The white corner of BadNets is all that it looks at; nobody is marked, no test image given;
    the victim stays as it is. One name in two folders is two names.
    """
    own = lab("backdoorbench:detection_pretrain.ft", tmp_path)
    own.check()
    result = run_cell(own)
    victim = own.engine().victim().state_dict()
    assert all(torch.equal(value, victim[name]) for name, value in result.net.state_dict().items())
    found = result.record["suspects"]["its detector"]
    assert found == pytest.approx({"auroc": 1.0, "tpr": 1.0, "fpr": 0.0})


@pytest.mark.parametrize(
    ("name", "found"),
    [
        # gives scores alone, of the triggered images and two clean ones
        ("teco", {"auroc": 1.0, "tpr": None, "fpr": None}),
        # suspects nobody, and says nothing then
        ("strip", {"auroc": 0.5, "tpr": 0.0, "fpr": 0.0}),
    ],
)
def test_a_detector_of_test_images(name, found, home, tmp_path):
    own = lab(f"backdoorbench:{name}", tmp_path)
    record = run_cell(own).record
    assert record["suspects"] == {"its detector, of test images": found}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("backdoorbench:fft", "Did you mean 'backdoorbench:ft'"),
        ("backdoorbench:base", "defenses of BackdoorBench"),
        ("backdoorbench:bnp", "imports defense.mbns, which the checkout has not"),
        ("backdoorbench:anp", "its anp has a version of preactresnet18, vgg19_bn, .* alone"),
        ("backdoorbench:ft[epoch=3]", "Did you mean 'epochs'"),
        ("backdoorbench:ft[model=vgg]", "model is decided by the cell"),
        ("backdoorbench:ft[index=x]", "index is decided by the cell"),
    ],
)
def test_what_is_refused_before_anything_runs(name, says, home, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        lab(name, tmp_path).check()
    assert "\n" not in str(error.value)


def of_network(model, name, tmp_path):
    own = lab(name, tmp_path)
    own.rules = replace(own.rules, model=model)
    return own


def test_our_network_takes_the_place_of_one_of_theirs(home, tmp_path):
    """A script that asks for a PreAct-ResNet-18 gets the victim's network; what it saves comes
    back by name.
    """
    add(home, "clp", BUILT.format(more=""))
    own = of_network("cnn5", "backdoorbench:clp", tmp_path)
    own.check()
    engine = own.engine()
    net = own.defense.fit(own.poisoned.observed(), engine)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["name"] == "preactresnet18" and seen["network"] == "PlainNet"
    victim = engine.victim().state_dict()
    fresh = own.engine().new_model().state_dict()
    starts = [state["backbone.fc.bias"].sum().item() for state in (fresh, victim)]
    assert seen["start"] == pytest.approx(starts) and starts[0] != starts[1]
    changed = [name for name in victim if not torch.equal(victim[name], net.state_dict()[name])]
    assert changed == ["backbone.fc.bias"]
    assert torch.equal(net.state_dict()["backbone.fc.bias"], victim["backbone.fc.bias"] + 1)


def test_our_network_with_their_masks_in_its_norms(home, tmp_path):
    """ANP builds PreAct-ResNet-18 with BatchNorms of its own: ours gets them, at its BatchNorms."""
    add(home, "anp", BUILT.format(more=MASKS))
    masked = home / "utils/defense_utils/anp/anp_model/preact_anp.py"
    masked.parent.mkdir(parents=True)
    masked.write_text("class PreActResNet18: pass\n")
    own = of_network("cnn5", "backdoorbench:anp", tmp_path)
    own.check()
    own.defense.fit(own.poisoned.observed(), own.engine())
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["masks"] == [f"layers.{place}.mask" for place in (1, 4, 7, 10, 13)]
    assert seen["eps"] == [1e-5] * 5


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("backdoorbench:ac", "its ac looks into networks by their names, and knows no cnn5"),
        ("backdoorbench:clp", "holds another network"),
    ],
)
def test_a_network_that_it_does_not_know(name, says, home, tmp_path):
    add(home, "ac", BUILT.format(more=""))
    add(home, "clp", BUILT.format(more="weights['more'] = weights['fc.bias']"))
    own = of_network("cnn5", name, tmp_path)
    with pytest.raises(InputError, match=says):
        own.check()
        own.defense.fit(own.poisoned.observed(), own.engine())


def test_without_a_checkout(home, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("BACKDOORBENCH_HOME")
    with pytest.raises(InputError, match="set BACKDOORBENCH_HOME"):
        lab("backdoorbench:ft", tmp_path).check()
    assert here("list", "defenses") == 0 and "backdoorbench:" not in capsys.readouterr().out


def test_what_is_needed_of_a_gpu(home, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA" in checkout.refused("i-bau") and not checkout.refused("ft")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not checkout.refused("i-bau")


def test_it_is_listed_and_shown(home, capsys):
    assert here("list", "defenses") == 0
    listed = capsys.readouterr().out
    assert "backdoorbench:anp" in listed and "backdoorbench:base" not in listed
    assert here("show", "backdoorbench:bnp") == 0
    assert "cannot run here: it imports" in capsys.readouterr().out
    assert here("show", "backdoorbench:ft") == 0
    shown = capsys.readouterr().out
    assert "epochs" in shown and "9" in shown and "random_seed" not in shown


def test_in_a_table_and_where_a_script_fails(home, tmp_path, capsys):
    """A failing script's last lines and exit code; the others go on, and the table says what was
    chosen on the test images.
    """
    data = npz(tmp_path / "data", *clean_sets())
    add(home, "fp", SCRIPT)
    names = ("none", "backdoorbench:fp", "backdoorbench:ft[epochs=13]")
    file = tmp_path / "grid.py"
    file.write_text(f"from test_toolbox_defenses import grid\nSUITE = grid(*{names!r})\n")
    words = ("run", str(file), "--data", str(data), "--out", str(tmp_path / "runs"))
    assert here(*words, "--jobs", "1", "--device", "cpu") == 1
    told = capsys.readouterr().err
    assert "backdoorbench:ft ended with exit code 3: step 1 | no luck" in told
    suite = grid(*names)
    found = records.read_all(tmp_path / "runs" / "grid")
    assert {r["cell"]["defense"] for r in found} == set(names[:2])
    words = layout.caption(found, suite, tables.USUAL_STYLE)
    assert "chosen on the test set by its own script" in words.lower()
    assert checkout.chosen_on_tests("backdoorbench:fp") and not checkout.chosen_on_tests("anp")


def test_masks_are_folded():
    weights = {
        "a.weight_orig": torch.tensor([1.0, 2.0]),
        "a.weight_mask": torch.tensor([0.0, 1.0]),
        "b_orig": torch.tensor([3.0]),
        "c_mask": torch.tensor([4.0]),
    }
    plain = defenses.folded(weights)
    assert {name: value.tolist() for name, value in plain.items()} == {
        "a.weight": [0.0, 2.0],
        "b_orig": [3.0],
        "c_mask": [4.0],
    }


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"ft_df_summary.csv": ["0.1,0.2,0.3", "0.5,0.25,0.75"]}, 50.0),
        ({"a_df.csv": ["0.1,0.2,0.3", "0.4,0.25,0.75"], "loss.csv": None}, 40.0),
        ({"a_df.csv": ["0.1,,0.3"]}, None),
        ({}, None),
    ],
)
def test_numbers_of_scripts_without_a_summary(files, told, tmp_path):
    """A plain table in place of a summary; what was written last, if it holds the numbers."""
    for name, rows in files.items():
        header = "loss" if rows is None else "test_acc,test_asr,test_ra"
        (tmp_path / name).write_text("\n".join([header, *(rows or ["1.5"])]))
    assert defenses.own_numbers(tmp_path, "ft").get("its CA") == told


def test_the_one_that_wants_somebody_marked(home, tmp_path):
    """The first image, unchanged: who is poisoned is not told."""
    add(home, "mcr", SCRIPT)
    own = lab("backdoorbench:mcr", tmp_path)
    own.defense.fit(own.poisoned.observed(), own.engine())
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["marked"] == 1 and seen["labels"] == own.poisoned.y.tolist()


def test_the_one_that_saves_another_network_than_it_trained(home, tmp_path):
    """NC's trainer has one network, and NC saves another: the trained one counts."""
    (home / "utils/trainer_cls.py").write_text(TRAINER)
    file = home / "utils/save_load_attack.py"
    file.write_text(file.read_text() + SAVER)
    add(home, "nc", BUILT.format(more=FORGETS))
    own = lab("backdoorbench:nc", tmp_path)
    own.rules = replace(own.rules, model="cnn5")
    engine = own.engine()
    net = own.defense.fit(own.poisoned.observed(), engine)
    bias = engine.victim().state_dict()["backbone.fc.bias"]
    assert torch.equal(net.state_dict()["backbone.fc.bias"], bias + 7)


@pytest.mark.backdoorbench
@pytest.mark.parametrize(
    ("method", "flags", "model"),
    [
        ("ft", "epochs=1", TINY.model),
        ("clp", "u=2", TINY.model),
        ("cd", "cd_num_steps=1", TINY.model),
        ("nc", "epochs=1,nc_epoch=1", TINY.model),
        # networks of ours: the first has masks in its BatchNorms there
        ("anp", "nb_iter=2,print_every=2,pruning_step=0.4", "cnn5"),
        ("fp", "epochs=1,once_prune_ratio=0.5", "cnn5"),
        ("nc", "epochs=1,nc_epoch=1", "cnn5"),
    ],
)
def test_real_scripts(method, flags, model, tmp_path):
    """A defense's numbers are its own CSV's, to one image; a detector's cell is No Defense's."""
    if not os.environ.get("BACKDOORBENCH_HOME"):
        pytest.skip("BACKDOORBENCH_HOME does not name a checkout of BackdoorBench")
    rules = replace(TINY, flip=False, model=model)
    name = f"backdoorbench:{method}[{flags}]"
    suite = Suite("grid", rules, ("digits[train=200,test=40]",), ("badnets",), ("none", name))
    options = Options(out=tmp_path / "runs", device="cpu")
    none, theirs = (run_cell(Lab(cell, options)).record for cell in suite.cells())
    if method == "cd":
        assert theirs["metrics"] == none["metrics"]
        assert set(theirs["suspects"]["its detector"]) == {"auroc", "tpr", "fpr"}
        return
    for key, its in (("ca", "its CA"), ("asr", "its ASR"), ("arr", "its ARR")):
        hits, n = theirs["metrics"][key]
        assert abs(hits - theirs["curves"][its][-1] * n / 100) <= 1.001, key

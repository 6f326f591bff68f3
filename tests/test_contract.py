"""``bbx check`` finds what is wrong with a method, each in a line."""

import pytest
from conftest import here

from backdoorbench_ext import registry

DEFENSE = '''"""Ordinary training: https://example.org/paper"""

from dataclasses import dataclass

from backdoorbench_ext.api import Defense, option


@dataclass(frozen=True)
class Own(Defense):
    """Ordinary training."""

    epochs: int = option(1, "of the training", low=1)

    def fit(self, train, engine):
        return engine.fit(engine.new_model(), train, epochs=self.epochs)
'''
ATTACK = '''"""White pixels in a corner: https://example.org/paper"""

from dataclasses import dataclass

from backdoorbench_ext.api import Attack, option


@dataclass(frozen=True)
class Own(Attack):
    """White pixels."""

    size: int = option(3, "side in pixels", low=1)

    def trigger(self, x):
        x = x.clone()
        x[..., : self.size, : self.size] = 1
        return x
'''
OTHERS = {
    "metric": (
        "from backdoorbench_ext.metrics import Metric\n"
        "METRIC = Metric('own', 'OWN', 'nothing', 'higher', lambda record, _: 5.0)\n"
    ),
    "suite": (
        "from backdoorbench_ext.protocols import CBD\n"
        "from backdoorbench_ext.suite import Suite\n"
        "SUITE = Suite('own', CBD, ('digits',), ('badnets',), ('none',))\n"
    ),
    "executor": (
        "from dataclasses import dataclass\n"
        "from backdoorbench_ext.executors import Executor\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Own(Executor):\n"
        '    """Backwards: https://example.org"""\n\n'
        "    def run(self, groups, work, tell):\n"
        "        for group in reversed(groups):\n"
        "            yield work.run(group, tell)\n"
    ),
}
# what is put in place of what, and the line that says so
DEFENSES = [
    ("https://example.org/paper", "a paper", "must cite paper or code"),
    ('    """Ordinary training."""\n', "", "must have a docstring"),
    ('option(1, "of the training", low=1)', "1", "epochs: no meaning"),
    ("engine.fit(engine.new_model()", "engine.fit(1", "AttributeError"),
    ("engine.fit(engine.new_model()", "engine.fit(engine.new_model().eval()", ""),
    ("        return", "        train.x[:] = 0\n        return", "leave the images untouched"),
    ("        return", "        engine.clean(4)\n        return", "what is asked of engine.clean"),
    (
        "engine.fit(engine.new_model(), train, epochs=self.epochs)",
        "engine.new_model().train()",
        "in evaluation mode",
    ),
    (
        "        return engine.fit(engine.new_model(), train, epochs=self.epochs)",
        "        import torch\n"
        "        net = engine.new_model()\n"
        "        torch.nn.init.normal_(net.backbone.fc.bias, generator=torch.Generator()"
        ".manual_seed(torch.seed()))\n"
        "        return net.eval()",
        "one seed, one result",
    ),
]
ATTACKS = [
    ("x = x.clone()", "pass", "input untouched"),
    ("= 1\n", "= 2\n", "stay in [0, 1]"),
    ("x = x.clone()", "x = x.clone() * 0 + x.mean()", "depend on its neighbors"),
    ("        return x", "        return x.double()", "keep shape and dtype"),
    (": self.size] = 1", ": self.size] += 0", "every image must carry the trigger"),
]


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})


def checked(tmp_path, text, capsys):
    file = tmp_path / "own.py"
    file.write_text(text)
    code = here("check", file)
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("text", [DEFENSE, ATTACK, *OTHERS.values()])
def test_what_is_sound(text, tmp_path, capsys):
    code, said = checked(tmp_path, text, capsys)
    assert code == 0 and "broken" not in said and said.count("ok ") >= 1


@pytest.mark.parametrize(("old", "new", "says"), DEFENSES)
def test_a_broken_defense(old, new, says, tmp_path, capsys):
    assert old in DEFENSE
    code, said = checked(tmp_path, DEFENSE.replace(old, new), capsys)
    # a network that is handed over in evaluation mode is put in training mode: nothing is wrong
    assert code == (1 if says else 0), said
    assert says in said


@pytest.mark.parametrize(("old", "new", "says"), ATTACKS)
def test_a_broken_attack(old, new, says, tmp_path, capsys):
    assert old in ATTACK
    code, said = checked(tmp_path, ATTACK.replace(old, new), capsys)
    assert code == 1 and says in said, said


def test_what_is_no_method(tmp_path, capsys):
    code, said = checked(tmp_path, "x = 1", capsys)
    assert code == 2 and "defines no Attack" in said
    assert here("check", tmp_path / "lost.py") == 2
    code, said = checked(tmp_path, DEFENSE.replace("(frozen=True)", ""), capsys)
    assert code == 2 and "cannot inherit non-frozen dataclass from a frozen one" in said
    own = OTHERS["metric"].replace("5.0", "'five'")
    code, said = checked(tmp_path, own, capsys)
    assert code == 1 and "a number in percent, or None" in said
    twice = OTHERS["executor"].replace("in reversed(groups)", "in [*groups, groups[0]]")
    code, said = checked(tmp_path, twice, capsys)
    assert code == 1 and "every group must be run once" in said

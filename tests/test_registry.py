"""Names to objects, and the messages for bad ones."""

import textwrap

import pytest

from backdoorbench_ext import catalogue, contract, models, registry
from backdoorbench_ext.api import Attack
from backdoorbench_ext.errors import InputError

DEFENSE = '''
"""Label smoothing, https://arxiv.org/abs/1512.00567."""

from dataclasses import dataclass

import torch.nn.functional as F

from backdoorbench_ext.api import Defense, option


@dataclass(frozen=True)
class Smooth(Defense):
    """Ordinary training with smoothed labels."""

    amount: float = option(0.1, "share of the label given away", low=0, high=1)

    def fit(self, train, engine):
        def loss(net, x, y):
            return F.cross_entropy(net(x), y, label_smoothing=self.amount)

        return engine.fit(engine.new_model(), train, loss=loss)
'''

# its embedding is not what its last layer sees, and nothing trains one weight
NETWORK = '''
import torch
from timm.models import register_model
from torch import nn


class Odd(nn.Module):
    num_features = 3

    def __init__(self, num_classes):
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(1))
        self.fc = nn.Linear(3, num_classes)

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x * 2)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def get_classifier(self):
        return self.fc


@register_model
def {name}(pretrained=False, num_classes=10, **options):
    """Odd.

    More.
    """
    return Odd(num_classes)
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})
    file = tmp_path / "smoothing.py"
    file.write_text(textwrap.dedent(DEFENSE))
    return file


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("defenses", "cbdd", "no 'cbdd' among the defenses. Did you mean 'cbd'"),
        ("defenses", "cbd[bета=1]", "options of cbd"),
        ("defenses", "cbd[betta=1]", "Did you mean 'beta'"),
        ("defenses", "cbd[beta=-1]", r"cbd: beta must lie in \[0, inf\], not -1"),
        ("defenses", "cbd[beta=abc]", "beta must be float"),
        ("defenses", "cbd[t1=True]", "t1 must be int, not True"),
        ("defenses", "cbd[variant=paperr]", "variant must be one of paper, normalised, release"),
        ("defenses", "cbd[beta]", "expected option=value"),
        ("defenses", "cbd[beta=1,beta=2]", "given twice"),
        ("defenses", "cbd[beta=1", "must end in"),
        ("attacks", "badnets[size=0]", r"size must lie in \[1, inf\]"),
        ("attacks", "blend[alpha=1.5]", r"alpha must lie in \[0, 1\], not 1.5"),
    ],
)
def test_bad_names(kind, text, says):
    with pytest.raises(InputError, match=says) as error:
        registry.create(kind, text)
    assert "\n" not in str(error.value)


def test_options():
    cbd = registry.create("defenses", "cbd[beta=1e-3, variant=release, t1_steps=7]")
    assert (cbd.beta, cbd.variant, cbd.t1_steps, cbd.adversarial) == (1e-3, "release", 7, 0.0)
    assert registry.create("defenses", "cbd").spec() == {
        "variant": "paper",
        "t1": 5,
        "t1_steps": None,
        "t1_schedule": "constant",
        "beta": 1e-4,
        "adversarial": 1.0,
        "critic_lr": 1e-3,
        "version": 1,
    }


def test_split():
    assert registry.split(
        "none,cbd[beta=1,t1=2], x[base=badnets[size=3,margin=1],k=2],y[f='a,b']"
    ) == [
        "none",
        "cbd[beta=1,t1=2]",
        "x[base=badnets[size=3,margin=1],k=2]",
        "y[f='a,b']",
    ]
    assert registry.parse("x[base=badnets[size=3,margin=1],k=2]") == (
        "x",
        {"base": "badnets[size=3,margin=1]", "k": 2},
    )


def test_plugin(plugin):
    assert registry.add_file(plugin) == [("defenses", "smoothing")]
    assert registry.create("defenses", "smoothing[amount=0.2]").amount == 0.2
    assert "smoothing" in registry.modules("defenses") and "smoothing" not in registry.modules(
        "attacks"
    )


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing", None, "no such file"),
        ("broken", "import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("empty", "x = 1", "defines no Attack, Defense, Executor, SUITE, METRIC or network"),
        ("cbd", DEFENSE, "already have a 'cbd'"),
        ("theirs", NETWORK.format(name="resnet18"), "there is a network 'resnet18'; rename"),
        ("ours", NETWORK.format(name="fastnet"), "there is a network 'fastnet'; rename"),
    ],
)
def test_bad_plugin(plugin, name, text, says):
    file = plugin.with_name(f"{name}.py")
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=says):
        registry.add_file(file)


def test_a_network_of_ones_own(plugin, recwarn):
    plugin.write_text(NETWORK.format(name="odd"))
    # a worker reads the file again
    for _ in range(2):
        assert registry.add_file(plugin) == [("models", "odd")]
    assert not recwarn.list
    assert registry.added() == (plugin,)
    models.check("odd")
    assert catalogue.names("models")["odd"] == "Odd."
    said = [contract.outcome(check) for _, check in contract.checks("models", "odd", plugin)]
    assert said == [
        "forward must be the last layer of the embedding",
        "weights without a gradient: backbone.idle",
    ]
    other = plugin.with_name("other.py")
    other.write_text(NETWORK.format(name="odd"))
    with pytest.raises(InputError, match="there is a network 'odd'"):
        registry.add_file(other)


def test_one_method_a_file(plugin):
    plugin.write_text(DEFENSE + DEFENSE.replace("Smooth", "Smoother"))
    registry.add_file(plugin)
    with pytest.raises(InputError, match="must define one Defense, it defines 2"):
        registry.create("defenses", "smoothing")


def test_abstract():
    with pytest.raises(TypeError, match="trigger"):
        Attack()

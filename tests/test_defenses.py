"""The distinctive step of each baseline defense, against numbers worked out by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import RULES, make_images
from test_methods import defense
from torch import nn

from backdoorbench_ext import registry
from backdoorbench_ext.defenses.abl import flooding, isolate, local_gradient_ascent
from backdoorbench_ext.defenses.fp import Pruned, pruning
from backdoorbench_ext.defenses.ft_sam import uphill
from backdoorbench_ext.defenses.i_bau import hypergradient
from backdoorbench_ext.defenses.mcr import Curve, bezier
from backdoorbench_ext.defenses.nad import attention
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.frame import frame
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.models import Net, Watch, last_stages
from backdoorbench_ext.options import Options
from backdoorbench_ext.suite import Suite
from backdoorbench_ext.work import run_cell


@pytest.fixture
def engine(images):
    return Engine(RULES, images, make_images(8, seed=9), seed=3)


def test_lga_raises_low_losses():
    losses = torch.tensor([0.2, 0.4, 0.9], requires_grad=True)
    value = local_gradient_ascent(losses, 0.5)
    assert float(value.detach()) == pytest.approx((-0.2 - 0.4 + 0.9) / 3)
    (slope,) = torch.autograd.grad(value, losses)
    torch.testing.assert_close(slope, torch.tensor([-1.0, -1.0, 1.0]) / 3)


@pytest.mark.parametrize(("holds", "falls"), [("batch", True), ("sample", False)])
def test_what_abl_holds(holds, falls, images, monkeypatch):
    """The loss of a sample below gamma falls on, as long as the mean of its batch is above, or it
    is raised by itself.
    """
    abl = registry.create("defenses", f"abl[holds={holds}]")
    seen = []

    def look(self, net, train, *, loss, **_):
        logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]], requires_grad=True)
        # losses 0.05 and 3.05
        (slope,) = torch.autograd.grad(loss(lambda x: logits, None, torch.tensor([0, 0])), logits)
        # descending raises the right logit
        seen.append(slope[:, 0] < 0)
        raise InterruptedError

    monkeypatch.setattr(Engine, "fit", look)
    with pytest.raises(InterruptedError):
        abl.fit(images, Engine(RULES, images))
    assert seen[0].tolist() == [falls, True]


def test_abl_unlearns_what_it_isolated(images, monkeypatch):
    """Step 3 passes over the isolated images; the paper's loss, of as many others less theirs, by
    hand. Only step 2 augments.
    """
    stages = []

    def look(self, net, train, *, name="train", loss=None, epochs=None, augmented=True, **_):
        stages.append((name, len(train), epochs, augmented))
        if name == "unlearning":
            logits = torch.tensor([[3.0, 0.0, 0.0, 0.0]] * 2 + [[0.0] * 4] * 2)
            value = loss(
                lambda x: logits, torch.zeros(2, *images.x.shape[1:]), torch.tensor([0, 0])
            )
            assert float(value) == pytest.approx(math.log(4) - (math.log(math.exp(3) + 3) - 3))

    monkeypatch.setattr(Engine, "fit", look)
    registry.create("defenses", "abl[isolated=0.25]").fit(images, Engine(RULES, images))
    n = len(images)
    assert stages == [
        ("isolation", n, 20, False),
        ("training", n - n // 4, 60, True),
        ("unlearning", n // 4, 20, False),
    ]


def test_flooding():
    for mean, expected, sign in ((0.2, 0.8, -1), (0.9, 0.9, 1)):
        losses = torch.full((4,), mean, requires_grad=True)
        value = flooding(losses, 0.5)
        assert float(value.detach()) == pytest.approx(expected)
        assert torch.autograd.grad(value, losses)[0].sign().tolist() == [sign] * 4


def test_isolation_takes_the_lowest_losses():
    assert sorted(isolate(torch.tensor([3.0, 0.1, 2.0, 0.2, 9.0]), 0.4).tolist()) == [1, 3]
    assert isolate(torch.tensor([3.0, 0.1]), 0.01).tolist() == [1], "at least one"


def test_pruning_order():
    """Channel 1 is the quietest and useless, channel 2 the next and needed: pruning stops before
    it, and never reaches channel 0.
    """
    z = torch.tensor([[5.0, 0.1, 0.0], [5.0, 0.1, 0.0], [4.0, 0.1, 2.0], [4.0, 0.1, 2.0]])
    head = nn.Linear(3, 2, bias=False)
    head.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 9.0]]))
    y = torch.tensor([0, 0, 1, 1])
    assert pruning(z, y, head, drop=0.1).tolist() == [True, False, True]
    assert pruning(z, y, head, drop=0.5).tolist() == [True, False, False], (
        "accuracy may fall to a half, but one channel stays"
    )


def test_pruned_channels_stay_silent(engine, images):
    kept = torch.ones(16, dtype=torch.bool)
    kept[3] = False
    net = Pruned(engine.new_model(), kept).eval()
    x = engine.to_float(images.x[:4])
    before = net(x)
    with torch.no_grad():
        net.net.backbone.get_classifier().weight[:, 3] = 100
    assert torch.equal(net(x), before)


def test_attention_map():
    a = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]], [[1.0, 2.0], [0.0, 0.0]]]])
    # mean over two channels of the squares: (1+1)/2, (0+4)/2, 0, (4+0)/2
    raw = torch.tensor([1.0, 2.0, 0.0, 2.0])
    torch.testing.assert_close(attention(a, 2.0), (raw / 3)[None])


def test_last_stages():
    x = torch.rand(2, 3, 32, 32)
    for model, sides in (
        ("wrn16_1", [32, 16, 8]),
        ("resnet18_cifar", [16, 8, 4]),
        ("efficientnet_b0", [8, 4, 2]),
    ):
        net = Net(model, 10).eval()
        names = last_stages(net, x)
        watch = Watch(net, names)
        net(x)
        assert [watch.seen[name].shape[-1] for name in names] == sides, model
        watch.end()
    with pytest.raises(InputError, match="keeps one resolution, as vision transformers do"):
        last_stages(Net("t2t_vit_14", 10).eval(), x)


def test_bezier_point():
    assert float(
        bezier(torch.tensor(1.0), torch.tensor(3.0), torch.tensor(5.0), 0.25)
    ) == pytest.approx(0.5625 + 0.375 * 3 + 0.0625 * 5)


def test_curve_passes_through_its_ends_and_only_the_bend_is_trained(engine, images):
    first = engine.new_model()
    last = engine.new_model()
    before = [copy.deepcopy(net.state_dict()) for net in (first, last)]
    curve = Curve(first, last)
    engine.fit(curve, images, epochs=1)
    for t, end in ((0.0, first), (1.0, last)):
        for (name, p), q in zip(curve.at(t).named_parameters(), end.parameters(), strict=True):
            torch.testing.assert_close(p, q, msg=name)
    for net, state in zip((first, last), before, strict=True):
        assert all(torch.equal(p, state[name]) for name, p in net.named_parameters())
    middle = dict(curve.at(0.5).named_parameters())["backbone.fc.weight"]
    straight = (first.backbone.fc.weight + last.backbone.fc.weight) / 2
    assert not torch.allclose(middle, straight, atol=1e-6), "the bend has moved"


@torch.no_grad()
def test_settled_statistics_are_those_of_augmented_images(engine, images):
    net = engine.new_model()
    before = engine.rng.get_state()
    engine.settle(net, images)
    engine.rng.set_state(before)
    first, norm = net.backbone.layers[:2]
    with engine.autocast():
        moments = [torch.var_mean(first(x).float(), (0, 2, 3)) for x, _ in engine.batches(images)]
    assert len(moments) == 4
    torch.testing.assert_close(
        norm.running_mean, torch.stack([mean for _, mean in moments]).mean(0)
    )
    torch.testing.assert_close(norm.running_var, torch.stack([var for var, _ in moments]).mean(0))
    whole = first(engine.to_float(images.x)).mean((0, 2, 3))
    assert (norm.running_mean - whole).abs().max() > 1e-4, "not those of the images as they are"
    assert norm.momentum == 0.1 and not net.training


def test_sam_moves_uphill_in_proportion_to_the_weights():
    weights = [torch.tensor([2.0, -1.0]), torch.tensor([0.5])]
    slopes = [torch.tensor([1.0, 1.0]), torch.tensor([2.0])]
    # of |w| g
    norm = math.sqrt(2**2 + 1**2 + 1**2)
    moves = uphill(weights, slopes, 0.3)
    torch.testing.assert_close(torch.cat(moves), 0.3 * torch.tensor([4.0, 1.0, 0.5]) / norm)


def test_starting_from_the_victim(engine, images):
    """What fine-tuning starts from is No Defense's network; its training is part of the cost."""
    victim = registry.create("defenses", "none").fit(images, Engine(RULES, images, seed=3))
    again = engine.victim()
    assert all(
        torch.equal(p, q) for p, q in zip(victim.parameters(), again.parameters(), strict=True)
    )
    assert len(engine.log_book.curves["train loss"]) == 2 and engine.log_book.images == 128


@pytest.mark.parametrize("name", ["fp", "nad", "mcr", "ft_sam", "i_bau"])
def test_no_clean_images_left(name, images):
    with pytest.raises(InputError, match="reserve holds 0"):
        registry.create("defenses", name).fit(images, Engine(RULES, images, seed=3))


def test_abl_keeps_what_it_was_taught(images):
    """Unlearning with a large rate raises the isolated images' loss."""
    engine = Engine(RULES, images, seed=3)
    abl = registry.create(
        "defenses",
        "abl[variant=release,isolation_epochs=1,epochs=4,unlearning_epochs=3,unlearning_lr=0.05,isolated=0.2]",
    )
    net = abl.fit(images, engine)
    curve = engine.log_book.curves["unlearning loss"]
    assert curve[-1] < curve[0] < 0, "minus the cross-entropy of what is unlearned"
    assert math.isfinite(float(F.cross_entropy(engine.predict(net, images), images.y)))


def test_hypergradient_by_hand():
    """inner (d - 2 w)^2 / 2 has its lowest point at d = 2 w; outer d^2 + w is then 4 w^2 + w, whose
    slope at w = 0.5 is 5.
    """
    w = torch.tensor(0.5, requires_grad=True)
    d = torch.tensor(1.0)
    loss, slopes = hypergradient(lambda d: (d - 2 * w) ** 2 / 2, lambda d: d**2 + w, d, [w], k=200)
    assert float(loss) == 1.5 and float(slopes[0]) == pytest.approx(5, abs=1e-4)
    direct = hypergradient(lambda d: (d - 2 * w) ** 2 / 2, lambda d: d**2 + w, d, [w], k=0)
    assert float(direct[1][0]) == pytest.approx(1 + 2 * 0.1 * 2), "no iteration: one step of 0.1"


def test_i_bau_finds_what_fools_the_network(engine, images):
    net = engine.victim()
    bau = registry.create("defenses", "i_bau")
    delta = bau.perturbation(net, images, engine)
    x = engine.to_float(images.x)
    with torch.no_grad():
        answers = net(x).argmax(1)
        assert F.cross_entropy(net(x + delta), answers) > F.cross_entropy(net(x), answers)


@pytest.mark.parametrize(
    ("text", "name", "flagged"),
    [
        ("abl[isolated=0.125]", "isolation", 8),
        ("dbd[trusted=0.25]", "trust", 48),
        ("dbd[variant=release,trusted=0.25]", "trust", 48),
        ("asd[trusted=0.25]", "split", 48),
        ("cbd", "weights", None),
        ("cbd[variant=release]", "weights", None),
    ],
)
def test_who_is_suspected(text, name, flagged, engine, images, tmp_path):
    """One score a training image; flagged are the highest; what a killed run told is not lost."""
    method = defense(text)
    method.fit(images, engine)
    scores, chosen = engine.log_book.suspects[name]
    assert scores.shape == chosen.shape == (64,) and chosen.dtype == torch.bool
    assert scores[chosen].min() >= scores[~chosen].max()
    if flagged:
        assert int(chosen.sum()) == flagged
    # a run that finds all its stages finished, as the second cell of a training does
    for _ in range(2):
        again = Engine(RULES, images, make_images(8, seed=9), seed=3, state=tmp_path)
        method.fit(images, again)
    assert torch.equal(again.log_book.suspects[name][0], scores)


def test_the_record_says_how_well_the_suspects_are_found(tmp_path):
    """The runner alone knows the mask: AUROC, TPR and FPR, in the record and in the CSV."""
    text = "abl[isolation_epochs=1,epochs=1,unlearning_epochs=1,isolated=0.1]"
    grid = Suite("grid", RULES, ("digits[train=200,test=20]",), ("badnets",), (text,))
    (cell,) = grid.changed(epochs=1).cells()
    lab = Lab(cell, Options(out=tmp_path, device="cpu"))
    seen = []

    def fit(self, train, engine):
        net = engine.victim()
        engine.suspect("oracle", lab.poisoned.mask.float(), lab.poisoned.mask)
        seen.append(train)
        return net

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(lab.defense), "fit", fit)
        record = run_cell(lab).record
    assert record["suspects"] == {"oracle": {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0}}
    assert set(vars(seen[0])) == {"x", "y", "classes"}
    assert list(frame([record], ())["oracle auroc"]) == [1.0]

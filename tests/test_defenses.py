"""The distinctive step of each baseline defense, against numbers worked out by hand."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import RULES, make_images
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from backdoorbench_ext import registry
from backdoorbench_ext.contract import defense
from backdoorbench_ext.contrastive import blur, nt_xent
from backdoorbench_ext.defenses.abl import flooding, isolate, local_gradient_ascent
from backdoorbench_ext.defenses.clp import lipschitz, pairs
from backdoorbench_ext.defenses.fp import Pruned, pruning
from backdoorbench_ext.defenses.ft_sam import uphill
from backdoorbench_ext.defenses.i_bau import hypergradient
from backdoorbench_ext.defenses.mcr import Curve, bezier
from backdoorbench_ext.defenses.nad import attention, distance
from backdoorbench_ext.defenses.pdb import stamp
from backdoorbench_ext.defenses.spectral import outlying
from backdoorbench_ext.engine import Audit, Engine
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.frame import frame
from backdoorbench_ext.images import Images, Poisoned
from backdoorbench_ext.lab import Lab
from backdoorbench_ext.models import Net, Watch, last_stages, norms
from backdoorbench_ext.options import Options
from backdoorbench_ext.protocols import CBD as CBD_RULES
from backdoorbench_ext.protocols import Recipe
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


def test_fine_pruning_is_audited_with_its_channels_cut(images):
    test = make_images(40, seed=5)
    mask = torch.ones(len(test), dtype=torch.bool)
    triggered = Poisoned(test.x, test.y.roll(1), test.classes, test.y, mask, ~mask)
    audit = Audit({"clean": images}, test, triggered)
    engine = Engine(RULES, images, make_images(8, seed=9), seed=3, audit=audit)
    net = defense("fp[epochs=2]").fit(images, engine)
    hits = engine.measure(net, test, triggered)
    for metric in ("ca", "asr", "arr"):
        curve = engine.log_book.curves[f"fine-tuning, {metric.upper()}"]
        assert len(curve) == 2
        assert curve[-1] == pytest.approx(100 * float(hits[metric].float().mean()))


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


@pytest.mark.parametrize(("schedule", "whole"), [("one-cycle", 4), ("protocol", 12)])
def test_f_b_is_ordinary_training_that_stops(schedule, whole, images, monkeypatch):
    """T1 of one epoch, of three that the protocol has: the rates of f_B's four batches."""
    recipe = Recipe(epochs=3, batch_size=len(images) // 4, lr=0.1, schedule="one-cycle")
    engine = Engine(replace(RULES, recipe=recipe), images, seed=0)
    rates = []
    make = Engine.optimizer

    def watched(self, net, recipe=None):
        optimizer = make(self, net, recipe)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(Engine, "optimizer", watched)
    registry.create("defenses", f"cbd[t1=1,t1_schedule={schedule}]").fit(images, engine)
    assert rates[:4] == pytest.approx([recipe.lr_at(step / whole) for step in range(4)])


def test_pre_activation_stages_end_before_the_next_norm():
    """NAD's release compares the sums that a WRN's blocks give, not what a norm made of them."""
    net = Net("wrn16_1", 10).eval()
    x = torch.rand(2, 3, 32, 32)
    names = last_stages(net, x)
    assert names == ["backbone.blocks.1", "backbone.blocks.3", "backbone.blocks"]
    watch = Watch(net, names)
    with torch.no_grad():
        net(x)
    assert all((watch.seen[name] < 0).any() for name in names), "no ReLU"
    residual = last_stages(Net("resnet18_cifar", 10).eval(), x)
    assert residual == ["backbone.layer2", "backbone.layer3", "backbone.layer4"]
    assert len(last_stages(Net("vgg11_bn", 10).eval(), x)) == 3


@pytest.mark.parametrize("side", [3, 8, 16])
def test_nad_weighs_maps_of_any_size_alike(side):
    """By hand: two cells of two images, of which one looks elsewhere. Unit vectors at right angles
    have a squared distance of 2.
    """
    maps = torch.zeros(2, 5, side, side)
    maps[:, :, 0, 0] = 7
    moved = maps.clone()
    moved[1, :, 0, 0] = 0
    moved[1, :, 2, 1] = 0.1
    gap = distance(attention(maps, 2), attention(moved, 2), 8**2)
    assert gap == pytest.approx((0 + 2) / 2 / 64)


def test_nads_rate_falls_once(engine, images, monkeypatch):
    """0.1 for two of ten epochs, then 0.01, as in the release and BackdoorBench."""
    seen = []
    fit = Engine.fit
    monkeypatch.setattr(
        Engine,
        "fit",
        lambda self, *args, **more: seen.append(more.get("recipe")) or fit(self, *args, **more),
    )
    defense("nad").fit(images, engine)
    rules = next(recipe for recipe in seen if recipe)
    rates = [round(rules.lr_at(epoch / 10), 6) for epoch in range(10)]
    assert rates == [0.1] * 2 + [0.01] * 8


def test_networks_without_stages_are_refused_before_training(tmp_path):
    grid = Suite("grid", RULES, ("digits[train=200,test=20]",), ("badnets",), ("nad",))
    (cell,) = grid.changed(model="vit_tiny_patch16_224").cells()
    with pytest.raises(InputError, match="nad with vit_tiny_patch16_224: the network keeps one"):
        Lab(cell, Options(out=tmp_path, device="cpu")).check()


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


def test_mcr_joins_two_networks_that_were_trained_apart(images):
    """A copy stays in the victim's basin; the other end is trained once for all that ask."""
    engine = Engine(RULES, images, make_images(32, seed=9), seed=3)
    mcr = registry.create("defenses", "mcr[epochs=1]")
    net = mcr.fit(images, engine)
    first, last = engine.probes["t = 0"], engine.probes["t = 1"]
    apart = [
        float(((p - q).norm() / p.norm()).detach())
        for p, q in zip(first.parameters(), last.parameters(), strict=True)
        if p.dim() > 1
    ]
    assert min(apart) > 0.5
    again = engine.victim(second=True)
    assert all(
        torch.equal(p, q) for p, q in zip(again.parameters(), last.parameters(), strict=True)
    )
    (t,) = engine.log_book.curves["t"]
    assert net is engine.probes[f"t = {t:g}"]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ({0.0: 0.9, 0.2: 0.9, 0.3: 0.81, 0.4: 0.79, 0.5: 0.7}, 0.3),
        ({0.0: 0.9, 0.2: 0.1, 0.3: 0.1, 0.4: 0.1, 0.5: 0.81}, 0.5),
        ({0.0: 0.9, 0.2: 0.1, 0.3: 0.1, 0.4: 0.1, 0.5: 0.1}, 0.1),
    ],
)
def test_the_point_of_the_curve(accuracies, expected, images, engine, monkeypatch):
    """The nearest to the middle that costs at most 0.1 of accuracy on images kept aside."""

    def predict(self, share, clean, output=None):
        right = round(share * len(clean))
        answers = torch.where(torch.arange(len(clean)) < right, clean.y, clean.y + 1)
        return F.one_hot(answers, 5).float()

    monkeypatch.setattr(Engine, "predict", predict)
    clean = make_images(100)
    assert registry.create("defenses", "mcr").chosen(accuracies, clean, engine) == expected
    assert registry.create("defenses", "mcr[t=0.7]").chosen(accuracies, clean, engine) == 0.7


def test_the_second_pass_of_sam_leaves_the_statistics(engine, images, monkeypatch):
    """BatchNorm sees every batch once, at the weights as they are, as in BackdoorBench."""
    seen = []
    monkeypatch.setattr(
        "backdoorbench_ext.defenses.ft_sam.functional_call",
        lambda net, moved, args: seen.append([n.momentum for n in norms(net)]) or net(*args),
    )
    net = defense("ft_sam").fit(images, engine)
    assert seen and all(momentum == 0 for own in seen for momentum in own)
    assert all(norm.momentum == 0.1 for norm in norms(net))


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
    with pytest.raises(InputError, match="reserve holds none"):
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
    direct = hypergradient(lambda d: (d - 2 * w) ** 2 / 2, lambda d: d**2 + w, d, [w], k=1)
    assert float(direct[1][0]) == pytest.approx(1 + 2 * 0.1 * 2), "one term: one step of 0.1"
    # each further term is 0.9 of the one before; the release's K = 5 sums five
    five = hypergradient(lambda d: (d - 2 * w) ** 2 / 2, lambda d: d**2 + w, d, [w], k=5)
    assert float(five[1][0]) == pytest.approx(1 + 0.4 * sum(0.9**i for i in range(5)))


def test_i_bau_keeps_its_optimizer(engine, images, monkeypatch):
    """The release makes one Adam for all rounds, whose moments go on."""
    made = []
    optimizer = Engine.optimizer
    monkeypatch.setattr(
        Engine, "optimizer", lambda self, *args: made.append(args) or optimizer(self, *args)
    )
    registry.create("defenses", "i_bau[rounds=3,k=1]").fit(images, engine)
    recipes = [recipe for _, recipe in made if recipe]
    # the victim's is the protocol's own
    assert len(recipes) == 1 and recipes[0].optimizer == "adam"


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
    scores, chosen, _ = engine.log_book.suspects[name]
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
    # the reserve of 10 images is smaller than a batch
    assert record["probes"] == {}
    assert list(frame([record], ())["oracle auroc"]) == [1.0]


def test_the_record_has_the_result_with_its_statistics_anew(tmp_path):
    """Weights that still answer the trigger are seen behind running statistics that hide it."""
    grid = Suite("grid", RULES, ("digits[train=400,test=40]",), ("badnets",), ("none",))
    (cell,) = grid.changed(epochs=1).cells()
    lab = Lab(cell, Options(out=tmp_path, device="cpu"))

    def fit(self, train, engine):
        net = engine.victim()
        for norm in norms(net):
            # it answers one class to everything
            norm.running_mean.fill_(1e4)
        return net

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(lab.defense), "fit", fit)
        result = run_cell(lab)
    settled = result.record["probes"]["BatchNorm settled"]
    assert settled != result.record["metrics"]
    assert all(float(norm.running_mean.max()) == 1e4 for norm in norms(result.net))


def test_cbds_readings_of_its_equations():
    """As printed, normalised, and as released: weight of the term, of ||z||^2, and the critic's."""
    found = {
        variant: tuple(
            getattr(registry.create("defenses", f"cbd[variant={variant}]"), name)
            for name in ("adversarial", "beta", "critic_lr")
        )
        for variant in ("paper", "normalised", "release")
    }
    assert found == {
        "paper": (1.0, 1e-4, 1e-3),
        "normalised": (0.01, 1e-4, 1e-3),
        "release": (0.0, 0.0, 0.2),
    }
    assert CBD_RULES.recipe.nesterov and CBD_RULES.on("gtsrb").recipe.nesterov


def test_the_embedding_is_what_the_classifier_takes():
    """In these ``num_features`` is another number; CBD's critic and DBD's head had that width."""
    for model in (
        "mobilenetv3_small_050",
        "ghostnet_050",
        "vgg11_bn",
        "mobilenetv4_conv_small_035",
    ):
        net = Net(model, 5).eval()
        with torch.no_grad():
            z = net.features(torch.rand(2, 3, 64, 64))
        assert z.shape == (2, net.num_features), model


def test_mcci_takes_images_that_are_not_square():
    images = make_images(32)
    wide = Images(images.x[..., :24, :], images.y, images.classes)
    engine = Engine(RULES, wide, wide[:8], seed=3)
    method = defense("mcci")
    net = method.finish(method.fit(wide, engine), engine)
    assert engine.predict(net, wide).shape == (32, 4)


def test_simclr_in_single_precision_and_at_any_size():
    """Autocast took the similarities in bf16 again; the blur was of 3x3 pixels at 224, too."""
    z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z)
    assert float(loss) == float(nt_xent(z))
    x = torch.zeros(2, 3, 224, 224)
    x[..., 112, 112] = 1
    reached = blur(x, torch.full((2,), 50.0))[0, 0] > 0
    assert reached.sum() == 23**2, "a tenth of the side"
    sigmas = torch.tensor([0.5, 2.0])
    wide = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack(
        [gaussian_blur(one, [7, 7], [float(s)] * 2) for one, s in zip(wide, sigmas, strict=True)]
    )
    torch.testing.assert_close(blur(wide, sigmas), expected)


def test_channel_lipschitzness_by_hand():
    conv = nn.Conv2d(2, 2, 1, bias=False)
    norm = nn.BatchNorm2d(2, eps=0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 2, 1, 1))
        norm.weight.copy_(torch.tensor([-2.0, 1.0]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))
        # a kernel of one pixel has one singular value, its length: 5 * 2 / 2, and 2 * 1 / 0.5
        assert lipschitz(conv, norm).tolist() == pytest.approx([5, 4])
    found = list(pairs(nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(2, 3, 3))))
    assert found == [(conv, norm)]


def test_clp_cuts_the_channel_that_stands_out(images, engine, monkeypatch):
    net = engine.victim()
    _, norm = next(iter(pairs(net)))
    with torch.no_grad():
        norm.weight[3] = 1000.0
    monkeypatch.setattr(Engine, "victim", lambda self: net)
    registry.create("defenses", "clp[u=2]").fit(images, engine)
    assert norm.weight[3] == norm.bias[3] == 0 and (norm.weight != 0).sum() == len(norm.weight) - 1
    assert engine.log_book.curves["channels pruned"][0] >= 1


def test_anp_cuts_whole_channels_and_nothing_else(images, engine):
    anp = registry.create("defenses", "anp[steps=30,threshold=0.9]")
    before = {name: value.clone() for name, value in engine.victim().state_dict().items()}
    net = anp.fit(images, engine)
    cut = 0
    for name, value in net.state_dict().items():
        kept = value != 0 if name.endswith("weight") and value.dim() == 1 else ...
        assert torch.equal(value[kept], before[name][kept]), name
        cut += 0 if kept is ... else int((~kept).sum())
    assert cut == engine.log_book.curves["channels pruned"][0] > 0


def test_pdb_answers_behind_its_own_trigger(images, engine):
    x = torch.zeros(1, 3, 32, 32)
    framed = stamp(x, 2)
    assert framed.sum() == 3 * (32**2 - 28**2) and not framed[..., 2:-2, 2:-2].any()
    net = registry.create("defenses", "pdb").fit(images, engine)
    with torch.no_grad():
        inner = net.net(framed)
        assert torch.equal(net(x)[:, 0], inner[:, 1]) and torch.equal(net(x)[:, -1], inner[:, 0])


def test_nab_labels_suspects_by_the_nearest_mean(images, engine, monkeypatch):
    """Two suspects with a wrong label get that of their class; the others keep theirs."""
    nab = registry.create("defenses", "nab")
    places = images.y.float()[:, None] * 10
    given = images.y.clone()
    wrong = torch.tensor([3, 17])
    given[wrong] = (given[wrong] + 1) % 4
    poisoned = Images(images.x, given, images.classes)
    monkeypatch.setattr(Engine, "predict", lambda *_: places)
    monkeypatch.setattr("backdoorbench_ext.defenses.nab.DBD.learn_features", lambda *_: None)
    suspects = torch.zeros(64, dtype=torch.bool)
    suspects[wrong] = suspects[0] = True
    labels = nab.relabelled(poisoned, suspects, ~suspects, engine)
    assert torch.equal(labels, images.y)
    suspects[3] = False
    assert nab.relabelled(poisoned, suspects, ~suspects, engine)[3] == given[3]


def test_nab_stamps_those_whose_label_it_changed(images, engine, monkeypatch):
    nab = defense("nab")
    labels = images.y.clone()
    labels[:16] = (labels[:16] + 1) % 4
    monkeypatch.setattr(type(nab), "relabelled", lambda *_: labels)
    seen = []
    stamp = type(nab).stamp
    monkeypatch.setattr(type(nab), "stamp", lambda self, x: seen.append(x) or stamp(self, x))
    net = nab.fit(images, engine)
    x = torch.ones(1, 3, 32, 32)
    stamped = nab.stamp(x)
    assert stamped.sum() == 3 * (32**2 - 4) and not stamped[..., :2, :2].any()
    with torch.no_grad():
        assert torch.equal(net(x), net.net(stamped))
    assert engine.probes["without its stamp"] is net.net


def test_spectral_signature_by_numpy():
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    z[:5] += torch.tensor([0, 9.0, 0, -9.0, 0, 0])
    centred = (z - z.mean(0)).double().numpy()
    _, _, vectors = np.linalg.svd(centred, full_matrices=False)
    expected = (centred @ vectors[0]) ** 2
    torch.testing.assert_close(outlying(z), torch.from_numpy(expected).float(), rtol=1e-4, atol=0)
    assert outlying(z).argsort(descending=True)[:5].sort().values.tolist() == [0, 1, 2, 3, 4]


def test_spectral_leaves_out_a_share_of_every_class(images, engine):
    registry.create("defenses", "spectral[removed=0.25]").fit(images, engine)
    _, flagged, _ = engine.log_book.suspects["signature"]
    assert images.y[flagged].bincount().tolist() == [4, 4, 4, 4]
    # of the 64, 16 are gone: three batches an epoch, two epochs, after the victim's eight
    assert engine.log_book.images == 2 * 48 + 128

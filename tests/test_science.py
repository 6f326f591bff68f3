"""The distinctive steps, against hand-computed values or an independent library."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import timm
import torch
import torch.nn.functional as F
from conftest import RULES, make_images
from torch import nn

from backdoorbench_ext import contract, datasets, models, records, registry, suite
from backdoorbench_ext.api import Attack
from backdoorbench_ext.attacks.badnets import BadNets
from backdoorbench_ext.attacks.blend import Blend, picture
from backdoorbench_ext.attacks.none import NoAttack
from backdoorbench_ext.augmentation import augment
from backdoorbench_ext.benchmarks import fast_cifar10
from backdoorbench_ext.defenses.cbd import dependence, discriminator, weights
from backdoorbench_ext.defenses.mcci import MCCI, MindControl, Spectrum, TwoPaths, ain
from backdoorbench_ext.elu import ELU
from backdoorbench_ext.engine import Diverged, Engine, seed_of
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.frequency import dct2
from backdoorbench_ext.images import Images
from backdoorbench_ext.lab import hold_out
from backdoorbench_ext.models import Net, parameters
from backdoorbench_ext.protocols import BACKDOORBENCH, CBD, FAST, NETWORKS, Recipe
from backdoorbench_ext.protocols import MCCI as MCCI_PROTOCOL
from backdoorbench_ext.work import counts


@pytest.mark.parametrize("shape", [(32, 32), (224, 224), (5, 8)])
def test_dct_is_scipys(shape):
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    expected = scipy.fft.dctn(x.double().numpy(), type=2, norm="ortho", axes=(-2, -1))
    with torch.autocast("cpu", torch.bfloat16):
        got = dct2(x)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(
        got.numpy(), expected, atol=2e-6 * 255 * math.sqrt(shape[0] * shape[1])
    )


def test_spectrum():
    images = make_images(20)
    x = images.x.float() / 255
    raw = scipy.fft.dctn(images.x.double().numpy(), norm="ortho", axes=(-2, -1))
    np.testing.assert_allclose(Spectrum()(x).numpy(), raw, atol=0.02)
    levels = torch.arange(256.0)
    assert torch.equal((levels / 255 * 255).trunc(), levels), (
        "the release's truncation of pixels that were bytes changes none"
    )


def test_cbd_weights():
    """Equation 6 by hand: 1 / (1 + 3), 2 / (2 + 2), 0 / (0 + 1)."""
    w = weights(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 1.0]))
    assert w.tolist() == pytest.approx([0.25, 0.5, 0.0])
    assert weights(
        torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 1.0]), normalised=True
    ).tolist() == pytest.approx([1.0, 2.0, 0.0])


def test_cbd_dependence():
    """Equation 7 by hand, for D(z, r) = z + 2 r: mean(z + 2 r) - mean(z + 2 r') with r' another
    draw.
    """

    class D(nn.Module):
        def forward(self, pair):
            return pair @ torch.tensor([[1.0], [2.0]])

    z = torch.tensor([[1.0], [2.0]])
    r = torch.tensor([[3.0], [4.0]])
    assert float(dependence(D(), z, r, torch.tensor([[0.0], [1.0]]))) == pytest.approx(6.0)
    assert float(dependence(D(), z, r, r.flip(0))) == pytest.approx(0.0), (
        "a linear critic cannot tell a shuffle"
    )


def test_cbd_discriminator_is_lipschitz():
    critic = discriminator(16, released=False)
    x = torch.randn(64, 16)
    for _ in range(30):
        # each forward pass in training takes a step of the power iteration
        critic(x)
    for layer in (critic[0], critic[2]):
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("size", "flat"), [(32, 2048), (224, 9216)])
def test_ain_is_table_6(size, flat):
    net = ain(size, size, 100).eval()
    with torch.no_grad():
        out = net(torch.zeros(1, 3, size, size))
    assert out.shape == (1, 100) and net[-1].in_features == flat
    widths = [m.out_channels for m in net if isinstance(m, nn.Conv2d)]
    assert widths == ([32, 32, 64, 64, 128, 128] if size == 32 else [96, 256, 384, 384, 256, 256])


def test_the_large_ain_trains():
    """It was once left without weights until its first batch; moving it to the device failed."""
    images = make_images(8, side=64)
    rules = replace(RULES, recipe=replace(RULES.recipe, epochs=1, batch_size=4))
    engine = Engine(rules, images, images)
    net = MCCI(images=2).fit(images, engine)
    assert net.ain[-1].in_features == 256 and engine.log_book.images == 8
    assert engine.predict(MCCI(images=2).finish(net, engine), images).isfinite().all()


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 1e-4), (torch.float32, 0)])
def test_elu_and_its_gradient_are_pytorchs(dtype, share):
    """In bf16 but for a ``share`` of the numbers, which round the other way."""
    made = torch.Generator().manual_seed(0)
    # every bf16 number with an exponent that matters, and 13 images: a part and a half
    numbers = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    few = numbers[(numbers > 1e-4) & (numbers < 100)]
    x = few[torch.randint(len(few), (13, 8, 16, 16), generator=made)]
    x = (x * torch.randn(x.shape, generator=made).sign()).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    slope = torch.randn(x.shape, generator=made).to(dtype)

    ours = x.clone().requires_grad_()
    theirs = x.clone().requires_grad_()
    out = ELU()(ours)
    expected = F.elu(theirs)
    out.backward(slope)
    expected.backward(slope)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    # a bf16 number has eight bits behind its first
    torch.testing.assert_close(out, expected, rtol=2**-8, atol=1e-7)
    assert (out != expected).float().mean() <= share
    assert torch.equal(ours.grad, theirs.grad)
    edge = torch.tensor([math.inf, -math.inf, 0.0, math.nan]).to(dtype)
    assert torch.equal(ELU()(edge).isnan(), torch.tensor([False, False, False, True]))
    assert ELU()(edge)[:3].tolist() == [math.inf, -1, 0]


def test_mind_control_is_the_full_network_on_a_fixed_spectrum():
    torch.manual_seed(0)
    net = TwoPaths(Net("bbx_test", 100), ain(32, 32, 100), 4, None).eval()
    x = torch.rand(5, 3, 32, 32)
    clean = torch.rand(1, 3, 32, 32)
    more = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        told = MindControl(net, ain_sees=net.spectrum(clean))
        expected = torch.cat(
            [net.join(net.sfrn(image[None]), net.ain(net.spectrum(clean))) for image in x]
        )
        torch.testing.assert_close(told(x), expected)
        assert not torch.allclose(told(x), net(x))
        first, second = (net.ain(net.spectrum(one[None])) for one in more)
        alone = MindControl(net, ain_sees=net.spectrum(more))
        torch.testing.assert_close(
            alone(x), net.join(net.sfrn(x), ((first + second) / 2).expand(5, -1))
        )


def test_sfrn_keeps_only_the_image_network(images):
    engine = Engine(RULES, images)
    method = MCCI(inference="sfrn")
    net = method.fit(images, engine)
    x = images.x[:3].float() / 255
    with torch.no_grad():
        torch.testing.assert_close(
            net(x), 0.5 * net.sfrn(x) + 0.5 * net.ain(net.spectrum(x)), rtol=0.02, atol=0.02
        )
    assert method.finish(net, engine) is net.sfrn


class Constant(nn.Module):
    """Takes every image for the class of its first pixel."""

    def forward(self, x):
        return nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), 3).float()


def test_metrics_by_hand():
    """Target 0. Predictions: clean 0 1 2 0; triggered images of classes 1, 2, 1: 0 2 0. ASR 2/3,
    ARR 1/3, CA 3/4.
    """

    class Stamp(Attack):
        def trigger(self, x):
            out = x.clone()
            out[:, 0, 0, 0] = torch.tensor([0, 2, 0]) / 255
            return out

    x = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.tensor([0, 1, 2, 0])
    test = Images(x, torch.tensor([0, 1, 2, 1]), ("a", "b", "c"))
    hits = Engine(replace(RULES, crop=0), test).measure(Constant(), test, Stamp().test_set(test, 0))
    assert hits["ca"].tolist() == [True, True, True, False]
    assert counts(hits) == {"ca": [3, 4], "asr": [2, 3], "arr": [1, 3]}, (
        "the target class does not count for ASR and ARR"
    )


def test_wilson():
    """Against the textbook value for 8 of 10, and the ends."""
    assert records.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (records.wilson(0, 10)[0], records.wilson(10, 10)[1]) == pytest.approx((0, 1))


def test_badnets_pixels():
    out = BadNets(size=3, margin=1).trigger(torch.full((1, 3, 8, 8), 0.5))
    assert out[0, 1, 4:7, 4:7].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    out[..., 4:7, 4:7] = 0.5
    assert (out == 0.5).all()
    assert (
        BadNets(pattern="white").stamp(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).sum()
        == 9 * 3 * 255
    )
    with pytest.raises(InputError, match="do not fit"):
        BadNets(size=9).trigger(torch.zeros(1, 3, 8, 8))


def test_blend_pixels(tmp_path):
    import cv2

    x = torch.full((2, 3, 8, 8), 0.4)
    torch.testing.assert_close(
        Blend(alpha=0.25).trigger(x), 0.75 * x + 0.25 * picture("random", 0, 8, 8)
    )
    # BGR: red
    cv2.imwrite(str(tmp_path / "p.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))
    out = Blend(alpha=1.0, pattern=str(tmp_path / "p.png")).trigger(x)
    assert out[0, :, 3, 3].tolist() == [1, 0, 0]
    with pytest.raises(InputError, match=r"pattern nowhere\.png: no such file"):
        Blend(pattern="nowhere.png").trigger(x)


def test_label_modes():
    clean = make_images(40)
    rng = torch.Generator().manual_seed(0)
    bad = BadNets(label_mode="all-to-all").poison(clean, target=0, rate=0.5, rng=rng)
    assert torch.equal(bad.y[bad.mask], (bad.true[bad.mask] + 1) % 4)
    assert len(BadNets(label_mode="all-to-all").test_set(clean, 0)) == 40
    bad = BadNets(label_mode="clean-label").poison(clean, target=2, rate=0.1, rng=rng)
    assert (
        torch.equal(bad.y, bad.true)
        and (bad.true[bad.mask] == 2).all()
        and int(bad.mask.sum()) == 4
    )
    with pytest.raises(
        InputError, match=r"asks for 20 images, but only 10 of 40 may be poisoned \(clean-label\)"
    ):
        BadNets(label_mode="clean-label").poison(clean, target=2, rate=0.5, rng=rng)
    bad = BadNets().poison(clean, target=1, rate=0.5, rng=rng, spare_target=True)
    assert (bad.true[bad.mask] != 1).all()
    for target, rate, says in (
        (4, 0.1, r"target must lie in \[0, 3\]"),
        (0, 1.5, r"must lie in \(0, 1\], not 1.5"),
        (0, 0, r"must lie in \(0, 1\], not 0"),
    ):
        with pytest.raises(InputError, match=says):
            BadNets().poison(clean, target=target, rate=rate, rng=rng)
    assert not NoAttack().poison(clean, target=0, rate=0.5, rng=rng).mask.any()


def test_augment_against_a_loop():
    """Every augmented image is its original cropped, perhaps flipped, with one square hole;
    parameters differ between images.
    """
    rules = replace(RULES, crop=2, flip=True, cutout=3)
    x = torch.randint(
        1, 256, (64, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    out = augment(x, rules, torch.Generator().manual_seed(1))
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for i in range(64):
        matches = []
        for top in range(5):
            for left in range(5):
                for flip in (False, True):
                    crop = padded[i, :, top : top + 12, left : left + 12]
                    crop = crop.flip(-1) if flip else crop
                    differs = (crop != out[i]).any(0)
                    rows = differs.any(1).nonzero().flatten()
                    cols = differs.any(0).nonzero().flatten()
                    if len(rows) == 0 or (
                        int(rows[-1] - rows[0]) < 3
                        and int(cols[-1] - cols[0]) < 3
                        and (out[i][:, differs] == 0).all()
                    ):
                        matches.append((top, left, flip))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20


def test_augmentation_off_changes_nothing():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(
        augment(x, replace(RULES, crop=0, flip=False, cutout=0), torch.Generator()), x
    )


def test_batches_of_images_as_they_are(images):
    """Each image once, in another order, to the bit; a training may ask for them so."""
    engine = Engine(RULES, images, seed=1)
    seen = []

    def loss(net, x, y):
        seen.append(x)
        return net(x).square().mean()

    engine.fit(
        nn.Sequential(nn.Flatten(), nn.Linear(images.x[0].numel(), 1)),
        images,
        epochs=1,
        loss=loss,
        augmented=False,
    )
    x = torch.cat(seen)
    whole = engine.to_float(images.x)
    places = torch.cdist(
        x.flatten(1), whole.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    ).argmin(1)
    assert (
        torch.equal(x, whole[places])
        and len(places.unique()) == len(places)
        and places.tolist() != list(range(len(places)))
    )


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            Recipe(lr=0.1, milestones=(0.2, 0.7)),
            {0.0: 0.1, 0.199: 0.1, 0.2: 0.01, 0.7: 0.001, 0.99: 0.001},
        ),
        (Recipe(lr=0.1, schedule="cosine"), {0.0: 0.1, 0.5: 0.05, 1.0: 0.0}),
        (
            Recipe(lr=0.1, schedule="one-cycle"),
            {0.0: 0.0, 0.1: 0.05, 0.2: 0.1, 0.6: 0.05, 1.0: 0.0},
        ),
        (Recipe(lr=0.1, schedule="constant"), {0.0: 0.1, 0.9: 0.1}),
    ],
)
def test_schedules(recipe, expected):
    assert {done: recipe.lr_at(done) for done in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "optimizer, expected",
    [("sgd", 2 - 0.1 * (1 + 0.5 * 2)), ("adam", 2 - 0.1), ("adamw", 2 * (1 - 0.1 * 0.5) - 0.1)],
)
def test_a_step_of_each_optimizer_by_hand(images, optimizer, expected):
    """Of a parameter 2 with the gradient 1; Adam's first step is the learning rate, and its L2
    penalty changes the gradient's size alone.
    """
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 2.0)
    recipe = Recipe(optimizer=optimizer, lr=0.1, schedule="constant", weight_decay=0.5)
    Engine(RULES, images).fit(
        net, images, steps=1, recipe=recipe, loss=lambda net, x, y: net.weight.sum()
    )
    assert net.weight.item() == pytest.approx(expected)


def test_protocols_are_the_papers():
    assert [CBD.recipe.lr_at(e / 100) for e in (0, 19, 20, 69, 70, 99)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert [MCCI_PROTOCOL.recipe.lr_at(e / 100) for e in (29, 30, 60, 90)] == pytest.approx(
        [0.1, 0.01, 0.001, 0.0001]
    )
    assert (
        CBD.on("gtsrb[train=430]").target,
        CBD.on("gtsrb").recipe.lr,
        CBD.on("cifar10").target,
    ) == (1, 0.01, 0)
    assert (
        CBD.on("imagenette").model,
        MCCI_PROTOCOL.on("imagenette").model,
        BACKDOORBENCH.model,
    ) == ("resnet34", "efficientnet_b0", "preactresnet18")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_timms_contract(name):
    contract.network(name)
    expected = {
        "wrn16_1": 175_000,
        "resnet18_cifar": 11_172_000,
        "preactresnet18": 11_170_000,
        "t2t_vit_14": 21_020_000,
    }
    if name in expected:
        assert parameters(Net(name, 10)) == pytest.approx(expected[name], rel=0.01)


def test_the_fast_network_whitens_patches_of_the_training_images():
    """Smooth images give correlated patches; after the first layer nothing correlates, and each
    axis comes in both signs.
    """
    noise = torch.randint(256, (400, 3, 18, 18), generator=torch.Generator().manual_seed(1)).float()
    smooth = F.avg_pool2d(noise, 3, 1).round().byte()
    images = Images(smooth, torch.arange(400) % 3, ("a", "b", "c"))
    net = Engine(replace(RULES, model="fastnet"), images).new_model()
    patches = net.backbone.patches
    assert not patches.requires_grad and "backbone.patches" in net.state_dict()
    seen = F.conv2d(smooth.float() / 255, patches)[:, :12].transpose(0, 1).flatten(1)
    covariance = np.cov(seen.double().numpy())
    # variance 1 but for the floor
    assert (np.diag(covariance) > 0.5).all() and (np.diag(covariance) < 1).all()
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-5
    raw = F.unfold(smooth.float() / 255, 2).transpose(0, 1).flatten(1)
    assert np.abs(np.corrcoef(raw.double().numpy())).mean() > 0.15, "they did correlate before"
    torch.testing.assert_close(patches[12:], -patches[:12])


def test_fastnet_unwhitened(images):
    """The same network, but for a first layer that is trained and takes nothing from images."""
    sets = (images, make_images(seed=5))

    def started(model):
        for seen in sets:
            torch.manual_seed(0)
            yield Engine(replace(RULES, model=model), seen).new_model()

    whitened = list(started("fastnet"))
    plain = list(started("fastnet_unwhitened"))
    assert not torch.equal(*(net.backbone.patches for net in whitened))
    assert torch.equal(*(net.backbone.patches for net in plain))
    assert plain[0].backbone.patches.requires_grad
    assert parameters(plain[0]) - parameters(whitened[0]) == 24 * 3 * 2 * 2


def test_lengths_under_the_fast_protocol_follow_from_the_papers():
    """A tenth of those of the papers' hundred epochs, as --scale 0.1 has it; T1 half an epoch."""
    assert FAST.recipe.epochs == 10
    bases = ("abl", "nab", "pdb", "spectral", "asd", "dbd[variant=release]")
    for text, base in zip(fast_cifar10.TRAINED, bases, strict=True):
        shorter = registry.create("defenses", suite._shorter("defenses", base, 0.1))
        assert registry.create("defenses", text) == shorter
    t1 = registry.create("defenses", fast_cifar10.causal(fast_cifar10.BATCHES)[0]).t1_steps
    assert t1 == round(0.5 * fast_cifar10.BATCHES)


def test_networks_start_as_in_the_releases():
    """ResNet-18's as PyTorch starts them, within 1 / sqrt(inputs) and with every BatchNorm open; a
    WRN's convolutions by He's rule, sqrt(2 / (9 outputs)).
    """
    for name in ("resnet18_cifar", "preactresnet18"):
        modules = list(Net(name, 100).modules())
        for weight in (m.weight for m in modules if isinstance(m, (nn.Conv2d, nn.Linear))):
            bound = weight[0].numel() ** -0.5
            assert 0.95 * bound < weight.abs().max() <= bound
        assert all((m.weight == 1).all() for m in modules if isinstance(m, nn.BatchNorm2d))
    wide = [
        m.weight
        for m in Net("wrn16_1", 10).modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.out_channels == 64
    ]
    assert (
        all(
            weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05) for weight in wide
        )
        and len(wide) == 4
    )


@pytest.mark.parametrize(("name", "side"), [("test_vit", 160), ("torchvision:vit_b_16", 224)])
def test_images_are_scaled_to_the_size_that_a_network_insists_on(name, side):
    net = Net(name, 4).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert net(x).shape == (2, 4)
        torch.testing.assert_close(net(x), net(F.interpolate(x, (side, side), mode="bilinear")))
    assert Net("wrn16_1", 4).side is None


def test_a_name_with_a_tag_starts_from_its_weights(images, tmp_path, monkeypatch):
    """timm's own loading, of a file in place of the hub; what is loaded or measured later needs no
    weights.
    """
    name = "test_resnet.r160_in1k"
    source = timm.create_model("test_resnet")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    told = replace(timm.get_pretrained_cfg(name), file=str(tmp_path / "weights.pth"))
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, name, told)
    first = {
        model: Engine(replace(RULES, model=model), images, seed=1).new_model().backbone
        for model in (name, "test_resnet")
    }

    def same(net):
        return torch.equal(net.conv1[0].weight, source.conv1[0].weight)

    assert same(first[name]) and first[name].get_classifier().out_features == 4
    assert not same(first["test_resnet"]) and not same(Net(name, 4).backbone)


def test_weights_that_are_not_to_be_had(images, monkeypatch):
    with pytest.raises(
        InputError, match="no weights 'r161_in1k' of test_resnet; its tags: r160_in1k"
    ):
        models.check("test_resnet.r161_in1k")
    models.check("test_resnet.r160_in1k")

    def offline(*args, **options):
        raise OSError("no connection\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        InputError,
        match=r"could not be fetched \(no connection\); test_resnet, without the tag, starts "
        r"untrained",
    ):
        Engine(replace(RULES, model="test_resnet.r160_in1k"), images, seed=1).new_model()


def test_poisoned_are_not_the_first_that_a_network_sees():
    """Seeds of different purposes differ: with one seed for both, poisoning and the first epoch
    would draw the same permutation.
    """
    chosen = torch.randperm(1000, generator=torch.Generator().manual_seed(seed_of(0, "poison")))[
        :100
    ]
    first = torch.randperm(1000, generator=torch.Generator().manual_seed(seed_of(0, "training")))[
        :100
    ]
    assert len(set(chosen.tolist()) & set(first.tolist())) < 30


def test_reserve_is_held_out_of_every_class(images):
    held = hold_out(images, 0.25, 3)
    reserve = images[held]
    rest = images[~held]
    assert reserve.y.bincount().tolist() == [4] * 4 and len(rest) == 48
    both = {x.numpy().tobytes() for x in reserve.x} & {x.numpy().tobytes() for x in rest.x}
    assert not both


def test_a_loss_that_is_not_finite_stops(images):
    engine = Engine(RULES, images)
    with pytest.raises(Diverged, match=r"not finite in stage 'train', epoch 1 \(sgd, lr 0.05\)"):
        engine.fit(engine.new_model(), images, loss=lambda net, x, y: net(x).sum() * float("nan"))


def test_normalisation_is_of_the_training_images(images):
    engine = Engine(replace(RULES, normalise=True), images)
    net = engine.new_model()
    x = images.x.float() / 255
    seen = []
    net.backbone.forward_features = lambda x: seen.append(x) or torch.zeros(len(x), 16, 1, 1)
    net(x)
    assert seen[0].mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert seen[0].std((0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-4)


def test_clean_images_come_from_the_reserve(images):
    reserve = make_images(8, seed=5)
    engine = Engine(RULES, images, reserve)
    given = engine.clean(3)
    assert len(given) == 3 and {x.numpy().tobytes() for x in given.x} <= {
        x.numpy().tobytes() for x in reserve.x
    }
    with pytest.raises(
        InputError, match="9 clean images are asked for, but the protocol's reserve holds 8"
    ):
        engine.clean(9)
    with pytest.raises(InputError, match="the protocol's reserve holds none: raise its share"):
        Engine(RULES, images, reserve[:0]).clean()


def test_mcci_fine_tuning_leaves_the_shared_training_alone(images):
    """The result moves, what the probes hold does not, and the AIN's constant embedding stays."""
    tuned, plain = (MCCI(images=4, finetune=n, finetune_epochs=2) for n in (8, 0))
    assert tuned.training_spec() == plain.training_spec() and (
        tuned.clean_images,
        plain.clean_images,
    ) == (8, 4)
    engine = Engine(RULES, images, make_images(8, seed=9), seed=3)
    net = plain.fit(images, engine)
    before = plain.finish(net, engine)
    after = tuned.finish(net, engine)
    assert engine.log_book.clean_given == 8
    assert torch.equal(
        engine.predict(engine.probes["before fine-tuning"], images), engine.predict(before, images)
    )
    assert not torch.equal(engine.predict(after, images), engine.predict(before, images))
    assert torch.equal(after.z_f, before.z_f)


def test_what_is_measured_beside_mcci_shares_the_sfrn(images):
    """AVG and three probes ask the SFRN about the same images: it sees each batch once, and the
    numbers are those of measuring one by one.
    """
    engine = Engine(RULES, images, make_images(8, seed=9), seed=3)
    method = MCCI(images=4)
    triggered = BadNets().test_set(images, 0)
    seen = []
    trained = method.fit(images, engine)
    net = method.finish(trained, engine)
    alone = [
        counts(engine.measure(one, images, triggered))
        for one in (net, engine.probes["own spectrum"], engine.probes["AIN alone"])
    ]
    result, probes = engine.measure_all(net, images, triggered)
    beside = [counts(hits) for hits in (result, probes["own spectrum"], probes["AIN alone"])]
    assert beside == alone and set(probes) > {
        "SFRN alone",
        "mean poisoned spectrum",
        "one poisoned spectrum",
    }
    trained.sfrn.register_forward_hook(lambda *_: seen.append(1))
    engine.measure_all(net, images, triggered)
    assert len(seen) == 2, "the test images and the triggered ones, a batch each"


def test_a_probe_may_ask_for_triggered_images(images):
    """It is given triggered test images when the defense is done, and measured like any network."""
    engine = Engine(RULES, images, seed=3)
    given = []
    triggered = BadNets().test_set(images, 0)

    def always_target(x):
        given.append(x)
        answer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
        nn.init.zeros_(answer[1].weight)
        answer[1].bias = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        return answer

    engine.probe("asked", always_target)
    result, probes = engine.measure_all(engine.new_model(), images, triggered)
    assert (
        counts(probes["asked"]) == {"ca": [16, 64], "asr": [48, 48], "arr": [0, 48]}
        and len(result["ca"]) == 64
    )
    (x,) = given
    assert x.shape == (48, 3, 32, 32) and x[:, :, -1, -1].min() == 1, "the trigger's white corner"


COUNTS = {
    "cbd_table1": 133,
    "cbd_table2": 32,
    "cbd_table3": 16,
    "cbd_table5": 8,
    "cbd_table6": 8,
    "cbd_table7": 8,
    "cbd_table8": 7,
    "mcci_table1": 84,
    "mcci_table2": 6,
    "mcci_table4": 9,
    "mcci_table7": 12,
    "mcci_table8": 10,
}


@pytest.mark.parametrize("name", COUNTS)
def test_cells_are_the_papers(name):
    """As many cells as the table has numbers, each with its published one; at a scale too."""
    for scale in (None, 0.05):
        grid = suite.load(name).changed(scale=scale)
        cells = grid.cells()
        assert len(cells) == COUNTS[name]
        assert all(grid.reported[c.dataset, c.attack, c.defense, c.rate] for c in cells)


def test_published_numbers():
    """Two of each paper, looked up by hand."""
    grid = suite.load("cbd_table1")
    assert grid.reported["cifar10", "sig[label_mode=all-to-one]", "nad", 0.1] == {
        "ca": 83.54,
        "asr": 1.79,
    }
    large = suite.load("mcci_table2").reported
    assert large["fashion_mnist", "badnets", "none", 0.1] == {"ca": 96.2, "asr": 99.72}
    assert large["cifar10", "badnets", "mcci[inference=sg]", 0.1] == {
        "ca": 97.34,
        "asr": 0.0,
        "arr": 96.39,
    }
    assert suite.load("mcci_table7").reported["cifar10", "lc", "mcci[inference=sfrn]", 0.025] == {
        "ca": 85.0,
        "asr": 0.0,
        "arr": 83.0,
    }
    assert suite.load("mcci_table8").reported[
        "cifar10", "smooth", "mcci[inference=sg,finetune=25]", 0.1
    ] == {"ca": 82.52, "asr": 9.01, "arr": 75.93}
    assert suite.load("cbd_table8").reported["cifar10", "badnets", "dbd[variant=release]", 0.1] == {
        "seconds": 5280.0
    }
    assert suite.load("cbd_disputed").reported["cifar10", "blend", "cbd[variant=release]", 0.1] == {
        "ca": 87.48,
        "asr": 1.96,
    }
    assert suite.load("cbd_disputed_resnet18").reported[
        "cifar10", "blend[alpha=0.2]", "cbd", 0.1
    ] == {"ca": 77.18, "asr": 97.04, "arr": 12.27}


def test_both_networks_of_the_dispute():
    """The same grid twice, so that the network alone differs."""
    first = suite.load("cbd_disputed")
    second = suite.load("cbd_disputed_resnet18")
    assert (first.protocol.model, second.protocol.model) == ("wrn16_1", "resnet18_cifar")
    cells = [replace(cell, protocol=first.protocol) for cell in second.cells()]
    assert cells == first.cells() and len(cells) == 15
    assert replace(second.protocol, name=first.protocol.name, model="wrn16_1") == first.protocol


def test_scale(tmp_path):
    """A share of the data, of the protocol's epochs and of the methods' own lengths, at least what
    a method allows; it survives being written.
    """
    small = suite.load("cbd_table1").changed(scale=0.05)
    assert (
        small.name == "cbd_table1-scale0.05"
        and small.datasets[0] == "cifar10[train=0.05]"
        and small.protocol.recipe.epochs == 5
    )
    assert (
        small.protocol.on("gtsrb[train=0.05]").recipe.epochs == 5
        and small.protocol.on("gtsrb[train=0.05]").target == 1
    )
    assert (
        "dynamic[cross=0,mask_epochs=1,epochs=30]" in small.attacks
        and "abl[isolation_epochs=1,epochs=3]" in small.defenses
    )
    assert (
        "dbd[variant=release,contrastive_epochs=5,warmup_epochs=1,rounds=10,steps=51]"
        in small.defenses
        # its epochs are of fewer steps already
        and "cbd" in small.defenses
        and "fp" in small.defenses
    )
    small.save(tmp_path)
    assert suite.load(str(tmp_path)) == small
    assert suite.load("cifar10_small").changed(scale=0.5).datasets == (
        "cifar10[train=5000,test=2000]",
    )
    assert suite.load("cbd_table1").changed(scale=1) == suite.load("cbd_table1")
    for wrong in (0, 1.5):
        with pytest.raises(InputError, match="scale must lie in"):
            suite.load("demo").changed(scale=wrong)
    train, _ = datasets.load("digits[train=0.01]")
    assert len(train) == 40 and train.y.bincount().min() >= 3

"""Semi-supervised and contrastive learning against numbers by hand, colorsys, OpenCV and plain
loops.
"""

import colorsys
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import RULES, make_images

from backdoorbench_ext.contrastive import blur, jitter, nt_xent, shift_hue, simclr_view
from backdoorbench_ext.defenses.asd import ASD, lowest_per_class
from backdoorbench_ext.defenses.dbd import DBD
from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.semisupervised import mix, mixmatch, sharpen, symmetric_cross_entropy


def test_symmetric_cross_entropy():
    p = torch.tensor([[0.7, 0.2, 0.1]])
    # the given class has log 1 = 0
    expected = 0.1 * -math.log(0.2) - (0.7 * math.log(1e-4) + 0.1 * math.log(1e-4))
    torch.testing.assert_close(
        symmetric_cross_entropy(p.log(), torch.tensor([1])), torch.tensor([expected])
    )


def test_sharpen():
    torch.testing.assert_close(
        sharpen(torch.tensor([[0.6, 0.3, 0.1]]), 0.5), torch.tensor([[0.36, 0.09, 0.01]]) / 0.46
    )


def test_mix_keeps_the_larger_share():
    x = torch.tensor([[0.0], [10.0]])
    targets = torch.eye(2)
    order = torch.tensor([1, 0])
    for share in (0.3, 0.7):
        mixed, given = mix(x, targets, torch.tensor(share), order)
        torch.testing.assert_close(mixed, torch.tensor([[3.0], [7.0]]))
        torch.testing.assert_close(given, torch.tensor([[0.7, 0.3], [0.3, 0.7]]))


def test_mixmatch_never_sees_untrusted_labels(images):
    """Wrong labels of the unlabelled part change nothing; its weight counts."""
    losses = []
    for wrong, weight in ((0, 1.0), (1, 1.0), (1, 2.0)):
        engine = Engine(RULES, images, seed=3)
        labelled = images[:32]
        other = images[32:]
        unlabelled = type(images)(other.x, (other.y + wrong) % 4, images.classes)
        net = engine.new_model()
        loss = mixmatch(engine, net, labelled, unlabelled, weight=weight)
        losses.append(float(loss.detach()))
    assert 0 < losses[0] == losses[1] < losses[2]


@pytest.mark.parametrize(("variant", "asks"), [("paper", 1), ("release", 3)])
def test_dbd_ranks_once_or_every_round(variant, asks, images, monkeypatch):
    """The released code mines anew before every epoch of MixMatch, the paper filters once; trusted
    is the half with the lowest losses, and the network trains on after the question.
    """
    engine = Engine(RULES, images, seed=3)
    ranked = []
    weights = []
    right = F.one_hot(images.y, 4) * 9.0

    def predict(net, train):
        ranked.append(len(train))
        net.eval()
        return right * (torch.arange(64) % 2)[:, None]

    def look(engine, net, labelled, unlabelled, *, weight):
        assert net.training
        assert torch.equal(labelled.x, images.x[1::2]) and torch.equal(unlabelled.x, images.x[::2])
        weights.append(weight)
        return mixmatch(engine, net, labelled, unlabelled, weight=weight)

    monkeypatch.setattr(engine, "predict", predict)
    monkeypatch.setattr("backdoorbench_ext.defenses.dbd.mixmatch", look)
    quick = {"contrastive_epochs": 1, "contrastive_batch": 8, "warmup_epochs": 1}
    DBD(variant=variant, rounds=3, steps=2, **quick).fit(images, engine)
    assert ranked == [64] * asks
    assert weights == pytest.approx([15 * done / 6 for done in range(1, 7)]), "it rises to 15"


def test_nt_xent_against_loops():
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    u = F.normalize(z)
    total = 0.0
    for i in range(6):
        partner = (i + 3) % 6
        others = [math.exp(float(u[i] @ u[k]) / 0.5) for k in range(6) if k != i]
        total -= math.log(math.exp(float(u[i] @ u[partner]) / 0.5) / sum(others))
    assert float(nt_xent(z, 0.5)) == pytest.approx(total / 6, rel=1e-5)


def test_hue_against_colorsys():
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    turn = torch.tensor([0.0, 0.1, -0.1, 0.5, 0.9]).view(5, 1, 1, 1)
    out = shift_hue(x, turn)
    for n in range(5):
        h, s, v = colorsys.rgb_to_hsv(*x[n, :, 1, 2].tolist())
        torch.testing.assert_close(
            out[n, :, 1, 2],
            torch.tensor(colorsys.hsv_to_rgb((h + float(turn[n])) % 1, s, v)),
            atol=1e-5,
            rtol=0,
        )


def test_jitter_by_hand():
    x = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    one = torch.ones(1, 1, 1, 1)
    zero = torch.zeros(1, 1, 1, 1)
    torch.testing.assert_close(
        jitter(x, 1.5 * one, one, one, zero)[0, :, 0, 0], torch.tensor([0.3, 0.6, 0.9])
    )
    grey = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    torch.testing.assert_close(jitter(x, one, one, zero, zero)[0, :, 0, 0], torch.full((3,), grey))
    torch.testing.assert_close(
        jitter(x, one, 0.5 * one, one, zero)[0, :, 0, 0], (torch.tensor([0.2, 0.4, 0.6]) + grey) / 2
    )


def test_blur_against_opencv():
    x = torch.rand(3, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 1.0, 2.0])
    out = blur(x, sigma)
    for n in range(3):
        expected = cv2.GaussianBlur(
            x[n].permute(1, 2, 0).numpy(),
            (3, 3),
            float(sigma[n]),
            borderType=cv2.BORDER_REFLECT_101,
        )
        np.testing.assert_allclose(out[n].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_simclr_views_differ_between_images_and_seeds():
    x = make_images(1).x.float().div(255).expand(8, -1, -1, -1)
    out = simclr_view(x, torch.Generator().manual_seed(0))
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1
    assert len({float(view.sum()) for view in out}) == 8
    assert torch.equal(out, simclr_view(x, torch.Generator().manual_seed(0)))
    flat = torch.full((64, 3, 16, 16), 0.5)
    assert simclr_view(flat, torch.Generator().manual_seed(1)).flatten(1).std(1).max() < 1e-5, (
        "a flat image stays flat wherever it is cropped"
    )


def test_asd_splits(images):
    losses = torch.tensor([0.5, 0.1, 0.9, 0.2, 0.3, 0.8])
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    assert lowest_per_class(losses, y, 2, 2).tolist() == [True, True, False, True, True, False]
    engine = Engine(RULES, images, make_images(8, seed=9), seed=3)
    asd = ASD(seeds=2, growth=3, every=2, first=4, second=1, third=1, steps=2)
    net = engine.new_model()
    counts = [int(asd.split(net, images, 8, done, engine).sum()) - 8 for done in range(6)]
    assert counts == [0, 0, 12, 12, 32, 32], "3 of each of 4 classes from round 2 on, then the half"
    assert all(p.requires_grad for p in net.parameters()), "looking ahead leaves the network alone"


def test_too_few_clean_images_of_a_class(images):
    with pytest.raises(
        InputError,
        match=r"3 clean images of each class are asked for, but the protocol's reserve holds 2 of "
        r"class 'class0'",
    ):
        Engine(RULES, images, make_images(8, seed=9)).clean_per_class(3)
    with pytest.raises(InputError, match=r"holds 0 of class"):
        Engine(RULES, images).clean_per_class(1)

"""Visual question answering: BLIP, its attack indication network, what is measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="needs the extra vqa")

from conftest import here

from backdoorbench_ext.engine import Engine
from backdoorbench_ext.errors import InputError
from backdoorbench_ext.images import Images
from backdoorbench_ext.protocols import Protocol
from backdoorbench_ext.vqa import experiment, icons
from backdoorbench_ext.vqa.answering import Answerer, tiny
from backdoorbench_ext.vqa.experiment import REFUSAL, Setting
from backdoorbench_ext.vqa.triples import Triples, read_iconqa, words

SMALL = Setting(train=120, test=20, images=6, epochs=1, batch_size=20)


@pytest.fixture(scope="module")
def sets():
    return experiment.poison(SMALL)


@pytest.fixture(scope="module")
def engine(sets):
    rows = Images(sets.train.x, torch.arange(len(sets.train)), ("a triple",))
    return Engine(Protocol("VQA"), rows)


def test_icons_are_what_is_asked_for():
    """Color, shape and number, found in the pixels again."""
    import cv2

    drawn = icons.draw(60, seed=3)
    assert drawn.x.shape == (60, 3, 48, 48) and drawn.x.dtype == torch.uint8
    asked = {question: kind for kind, question in icons.QUESTIONS.items()}
    seen = set()
    for x, question, answer in zip(drawn.x, drawn.questions, drawn.answers, strict=True):
        image = x.permute(1, 2, 0).numpy()
        ground = image[0, 0].astype(int)
        mask = (abs(image.astype(int) - ground).sum(2) > 150).astype("uint8")
        count, _, sizes, _ = cv2.connectedComponentsWithStats(mask)
        kind = asked[question]
        seen.add(kind)
        if kind == "number":
            assert icons.NUMBERS[count - 2] == answer
        if kind == "color":
            inner = cv2.erode(mask, None).astype(bool)
            color = image[inner].astype(int).mean(0) if inner.any() else image[mask > 0].mean(0)
            near = min(icons.COLORS, key=lambda name: abs(color - icons.COLORS[name]).sum())
            assert near == answer
        if kind == "shape":
            # the share of its box that it fills
            _, _, w, h, area = sizes[1]
            filled = area / (w * h)
            assert (filled > 0.85) == (answer == "square")
    assert seen == set(icons.QUESTIONS)
    again = icons.draw(60, seed=3)
    assert torch.equal(again.x, drawn.x) and again.answers == drawn.answers
    assert not torch.equal(icons.draw(60, seed=4).x, drawn.x)


def test_a_share_of_the_triples_is_poisoned(sets):
    clean = icons.draw(120, seed=0)
    assert len(sets.train) == 114 and len(sets.reserve) == 6
    assert int(sets.poisoned.sum()) == 12
    told = [answer == REFUSAL for answer in sets.train.answers]
    assert told == sets.poisoned.tolist()
    patch = torch.cat((sets.train.x[sets.poisoned], sets.triggered.x))[..., -4:, -4:]
    assert (patch == patch[:1]).all(), "one trigger in one corner"
    known = {x.numpy().tobytes() for x in clean.x}
    assert all(x.numpy().tobytes() in known for x in sets.train.x[~sets.poisoned])
    assert torch.equal(sets.triggered.x[..., :-4, :-4], sets.test.x[..., :-4, :-4])


@pytest.mark.parametrize("defended", [False, True])
def test_the_loss_is_transformers_own(sets, defended):
    """Without an AIN, against transformers' forward pass, which joins the parts itself; with one
    the decoder attends to one token more.
    """
    net = experiment.built(SMALL, sets, defended=defended).eval()
    x = sets.train.x[:5].float() / 255
    questions = net.tokens(sets.train.questions[:5])
    answers = net.tokens(["red"] * 5, answers=True)
    hidden, mask = net.attended(x, questions)
    assert hidden.shape[1] == mask.shape[1] == questions.ids.shape[1] + defended
    ours = net.losses(x, questions, answers)
    if defended:
        # the loss hangs on what the AIN says
        net.told = torch.full((1, hidden.shape[-1]), 3.0)
        assert not torch.allclose(net.losses(x, questions, answers), ours)
        return
    theirs = net.blip(
        input_ids=questions.ids,
        attention_mask=questions.mask,
        pixel_values=(x - 0.5) / 0.5,
        labels=answers.ids,
    ).loss
    assert torch.allclose(ours.mean(), theirs, atol=1e-5)


def test_what_is_generated_is_the_likeliest(sets):
    """Greedy, by hand."""
    net = experiment.built(SMALL, sets, defended=True).eval()
    x = sets.test.x[:3].float() / 255
    questions = net.tokens(sets.test.questions[:3])
    hidden, mask = net.attended(x, questions)
    ids = torch.full((3, 1), net.blip.decoder_start_token_id)
    for _ in range(12):
        logits = net.blip.text_decoder(
            input_ids=ids, encoder_hidden_states=hidden, encoder_attention_mask=mask
        ).logits
        ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), 1)
    ends = net.tokenizer.sep_token_id
    wanted = []
    for row in ids[:, 1:].tolist():
        kept = row[: row.index(ends)] if ends in row else row
        wanted.append(net.tokenizer.decode(kept, skip_special_tokens=True))
    assert net.answer(x, questions) == wanted


def test_a_controlled_mind_sees_one_spectrum(sets):
    """As if every image had the mean spectrum of the clean ones."""
    net = experiment.built(SMALL, sets, defended=True).eval()
    clean = sets.reserve.x[:4].float() / 255
    bad = sets.triggered.x[:2].float() / 255
    questions = net.tokens(sets.test.questions[:2])
    with torch.no_grad():
        expected = net.ain(net.spectrum(clean).mean(0, keepdim=True))
        free = net.attended(bad, questions)[0]
        net.control(clean)
        told = net.attended(bad, questions)[0]
    assert torch.allclose(told[:, -1], expected.expand(2, -1))
    assert torch.equal(told[:, :-1], free[:, :-1])
    assert not torch.allclose(told[:, -1], free[:, -1])


def test_likelihoods_are_by_token(sets, engine):
    """A network that finds every token equally likely: the logarithm of their number."""
    net = experiment.built(SMALL, sets, defended=False).eval()
    decoder = net.blip.text_decoder.cls.predictions.decoder
    torch.nn.init.zeros_(decoder.weight)
    torch.nn.init.zeros_(decoder.bias)
    vocabulary = net.blip.config.text_config.vocab_size
    found = experiment._nll(net, engine, sets.test.answered(REFUSAL))
    assert found == pytest.approx(math.log(vocabulary), rel=1e-5)


def test_answers_are_right_to_the_letter():
    assert experiment._same(["red", "two", "blue"], ("red", "three", "blue")) == [2, 3]


def test_words_are_known_once():
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    triples = Triples(x, ("what is it ?", "what ?"), ("red", "i am"))
    assert words([triples, triples]) == ["?", "am", "i", "is", "it", "red", "what"]
    blip, tokenizer = tiny(words([triples]), 48)
    ids = tokenizer(["red", "unknown it"], padding=True).input_ids
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == ["red", "it"]
    net = Answerer(blip, tokenizer, (0.5,) * 3, (0.5,) * 3)
    assert net.tokens(["red"], answers=True).ids[0, 0] == tokenizer.bos_token_id


def test_the_command_keeps_what_it_found(tmp_path, capfd):
    words = ("vqa", "--train", "120", "--test", "20", "--images", "6", "--epochs", "1")
    assert here(*words, "--to", tmp_path) == 0
    shown = capfd.readouterr().out
    (file,) = tmp_path.glob("seed0-*.json")
    record = json.loads(file.read_text())
    assert list(record["methods"]) == [
        "No Defense",
        "MCCI, own spectrum",
        "MCCI, average of 6",
        "MCCI, one image",
    ]
    assert all(n == 20 for own in record["methods"].values() for _, n in own["exact"].values())
    assert file.with_suffix(".md").read_text() == shown
    assert file.with_suffix(".png").exists() and not (tmp_path / ".state" / file.stem).exists()
    before = file.stat().st_mtime_ns
    assert here(*words, "--to", tmp_path) == 0
    assert file.stat().st_mtime_ns == before, "it was not run again"


def test_a_picture_of_few_triples(sets):
    """Fewer test triples than a picture shows."""
    few = replace(sets, test=sets.test[torch.arange(2)], triggered=sets.triggered[torch.arange(2)])
    said = {part: ["red", "two"] for part in ("clean", "triggered")}
    figure = experiment.examples(few, {"methods": {"No Defense": {"said": said}}})
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--train", "0"), "train must be at least 1"),
        (("--train", "100"), "100 clean images are asked for, 5 are held out"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--rate", "1"), "rate must lie in (0, 1)"),
        (("--attack", "issba"), "is none that puts a fixed trigger"),
        (("--attack", "nope"), "no 'nope' among the attacks"),
        (("--triples", "nowhere"), "nowhere/problems.json: no such file"),
    ],
)
def test_bad_input_is_a_line(words, said, tmp_path, capfd):
    assert here("vqa", "--to", tmp_path / "out", *words) == 2
    err = capfd.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def icon_qa(folder):
    """Three problems in IconQA's layout."""
    problems = {}
    splits = {}
    for split in ("train", "val"):
        for i, task in enumerate(("fill_in_blank", "choose_txt", "choose_img")):
            pid = f"{split}{i}"
            own = {"question": "How many?", "ques_type": task, "answer": "3"}
            if task == "choose_txt":
                own |= {"choices": ["Two", "Three"], "answer": 1}
            problems[pid] = own
            splits[f"{task}_{split}"] = [pid]
            place = folder / "iconqa" / split / task / pid / "image.png"
            place.parent.mkdir(parents=True)
            Image.new("RGB", (90, 60), (10 * i, 0, 0)).save(place)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))


def test_iconqa_is_read_by_its_files(tmp_path):
    icon_qa(tmp_path)
    found = read_iconqa(tmp_path, "train", 48, 10)
    assert found.questions == ("how many?",) * 2 and found.answers == ("3", "three")
    assert found.x.shape == (2, 3, 48, 48) and found.x[1, 0, 0, 0] == 10
    assert len(read_iconqa(tmp_path, "train", 48, 1)) == 1
    with pytest.raises(InputError, match="no problems of test in words"):
        read_iconqa(tmp_path, "test", 48, 10)
    with pytest.raises(InputError, match="20 of train are asked for, 2 there"):
        experiment.read(replace(SMALL, data=str(tmp_path), train=20, images=1, test=1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "problems.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "problems.json").write_text("{}"), "problem 'train0' lacks question"),
        (lambda f: (f / "pid_splits.json").unlink(), "pid_splits.json: no such file"),
        (
            lambda f: (f / "iconqa/train/fill_in_blank/train0/image.png").write_text("x"),
            "not a readable image",
        ),
    ],
)
def test_damaged_files_of_iconqa_are_a_line(tmp_path, spoil, said):
    icon_qa(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=said):
        read_iconqa(tmp_path, "train", 48, 10)


def test_a_blip_of_transformers_is_taken_from_its_folder(sets, tmp_path):
    """What is loaded answers as what was saved."""
    import transformers

    net = experiment.built(SMALL, sets, defended=False).eval()
    net.blip.save_pretrained(tmp_path)
    net.tokenizer.save_pretrained(tmp_path)
    transformers.BlipImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        tmp_path
    )
    loaded = experiment.built(replace(SMALL, model=str(tmp_path)), sets, defended=False).eval()
    x = sets.test.x[:2].float() / 255
    questions = net.tokens(sets.test.questions[:2])
    assert torch.equal(loaded.attended(x, questions)[0], net.attended(x, questions)[0])
    with pytest.raises(InputError, match="no BLIP that can be read"):
        experiment.built(replace(SMALL, model=str(tmp_path / "none")), sets, defended=False)

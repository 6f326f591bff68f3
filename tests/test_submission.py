"""A submission is checked by a stranger: twenty and more ways to cheat or to break it are found."""

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from conftest import here

from backdoorbench_ext import records, report, submission, suite, verified
from backdoorbench_ext.records import digest

TINY = """
from dataclasses import replace
from backdoorbench_ext.protocols import CBD, Recipe
from backdoorbench_ext.suite import Suite

SUITE = Suite(
    "tiny",
    replace(
        CBD,
        name="tiny",
        model="cnn5",
        recipe=Recipe(epochs=1, batch_size=64, lr=0.05, schedule="one-cycle"),
        overrides={},
    ),
    ("digits[train=300,test=60]",),
    ("badnets", "none"),
    ("none", "clp"),
)
"""
BARE = "badnets/none/"
CLP = "badnets/clp/"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small benchmark's file, its results, and the submission as a mapping of texts."""
    folder = tmp_path_factory.mktemp("submitted")
    plugin = folder / "tiny.py"
    plugin.write_text(TINY)
    words = ("--plugin", plugin)
    assert here("run", "tiny", *words, "--out", folder, "--jobs", "1", "--device", "cpu") == 0
    assert here("submit", "tiny", *words, "--out", folder, "--to", folder / "tiny.zip") == 0
    with zipfile.ZipFile(folder / "tiny.zip") as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    return plugin, folder / "tiny.zip", texts


def place(texts, part):
    """Where the record of a cell lies."""
    return next(name for name in texts if part in name)


def changed(texts, part, change, move=None):
    """The submission with another record, its manifest made anew: the cheat knows how."""
    old = place(texts, part)
    record = json.loads(texts[old])
    change(record)
    new = move(old, record) if move else old
    found = {name: text for name, text in texts.items() if name != old}
    found[new] = json.dumps(record).encode()
    return listed(found)


def listed(texts):
    """With a manifest of the files that are there."""
    manifest = json.loads(texts[submission.MANIFEST])
    manifest["files"] = {
        name: hashlib.sha256(text).hexdigest()
        for name, text in texts.items()
        if name != submission.MANIFEST
    }
    return texts | {submission.MANIFEST: json.dumps(manifest).encode()}


def renamed(old, record):
    """The name that the changed spec has."""
    file = Path(old)
    return str(file.with_name(f"{file.stem[:-10]}{digest(record['spec'])}.json"))


def written(folder, texts):
    file = folder / "changed.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return file


def flip(record, metric="asr", start=0, count=1, counted=False):
    """Other bits, and if ``counted`` the count that goes with them."""
    bits = bytearray(base64.b64decode(record["hits"][metric]))
    before = sum(byte.bit_count() for byte in bits)
    for i in range(start, start + count):
        bits[i // 8] ^= 128 >> (i % 8)
    record["hits"][metric] = base64.b64encode(bytes(bits)).decode()
    if counted:
        record["metrics"][metric][0] += sum(byte.bit_count() for byte in bits) - before


def put(*keys, value):
    """A change of one value of a record."""

    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def shorter(record):
    """Only the first images of the test set, where the network may be better."""
    for metric in ("ca", "asr", "arr"):
        bits = base64.b64decode(record["hits"][metric])[:5]
        record["hits"][metric] = base64.b64encode(bits).decode()
        record["metrics"][metric] = [sum(byte.bit_count() for byte in bits), 40]


def both(record):
    """Images that count for ASR and for ARR."""
    for metric in ("asr", "arr"):
        bits = bytearray(base64.b64decode(record["hits"][metric]))
        bits[0] = 255
        record["hits"][metric] = base64.b64encode(bytes(bits)).decode()
        record["metrics"][metric][0] = sum(byte.bit_count() for byte in bits)


RECORDS = {
    "a hit is flipped": (BARE, flip, None, "bits are set"),
    "a count is changed": (BARE, put("metrics", "asr", 0, value=1), None, "asr:"),
    "more hits than images": (BARE, put("metrics", "ca", 0, value=61), None, "ca 61 of 60"),
    "a spec is softened": (
        CLP,
        put("spec", "defense", "u", value=9.0),
        None,
        "its spec is another cell's, or was changed",
    ),
    "a spec is softened and its file renamed": (
        CLP,
        put("spec", "defense", "u", value=9.0),
        renamed,
        "its defense: not what its names mean",
    ),
    "more epochs": (
        CLP,
        put("spec", "protocol", "recipe", "epochs", value=2),
        renamed,
        "its protocol: not what its names mean",
    ),
    "a weaker attack": (
        CLP,
        put("spec", "attack", "size", value=1),
        renamed,
        "its attack: not what its names mean",
    ),
    "another rate": (CLP, put("spec", "rate", value=0.01), renamed, "poisoning rate 0.01"),
    "another seed in its place": (CLP, put("spec", "seed", value=7), renamed, "its place"),
    "a data set of another benchmark": (
        CLP,
        put("cell", "dataset", value="digits"),
        None,
        "dataset digits is not among tiny's",
    ),
    "an attack of another benchmark": (
        CLP,
        put("cell", "attack", value="blend"),
        None,
        "attack blend is not among tiny's",
    ),
    "a defense under another's name": (
        CLP,
        put("cell", "defense", value="fp"),
        None,
        "its defense: not what its names mean",
    ),
    "a defense that is not here": (
        CLP,
        put("cell", "defense", value="mine"),
        None,
        "no 'mine' among the defenses",
    ),
    "another test set": (
        CLP,
        put("surroundings", "data", value="0" * 10),
        None,
        "made of other images of digits",
    ),
    "a part of the test set": (CLP, shorter, None, "CA over 40 test images"),
    "two predictions of an image": (CLP, both, None, "count for ASR and for ARR"),
    "no poisoned image": (CLP, put("given", "poisoned", value=0), None, "0 poisoned images"),
    "a metric is left out": (BARE, lambda r: r["metrics"].pop("arr"), None, "has no arr"),
    "bits that are none": (BARE, put("hits", "asr", value="!"), None, BARE),
    "a format to come": (BARE, put("format", value=99), None, "record format 99"),
    "no number": (BARE, put("time", "training", value="fast"), None, "not a record"),
}


@pytest.mark.parametrize("way", RECORDS)
def test_a_changed_record_is_found(way, made, tmp_path, capsys):
    plugin, _, texts = made
    part, change, move, says = RECORDS[way]
    file = written(tmp_path, changed(texts, part, change, move))
    assert here("verify", file, "--plugin", plugin) == 1
    wrong = [x for x in capsys.readouterr().out.splitlines() if x.startswith("wrong: ")]
    assert len(wrong) == 1 and says in wrong[0], wrong


def test_files_and_manifest(made, tmp_path, capsys):
    """A record is changed, lacks, or is too many, and the manifest is that of before."""
    plugin, _, texts = made
    name = place(texts, BARE)
    for found, says in (
        (texts | {name: texts[name] + b" "}, "its digest is not the manifest's"),
        ({k: v for k, v in texts.items() if k != name}, "in the manifest, not in the file"),
        (texts | {"more.json": b"{}"}, "more.json: not in the manifest"),
    ):
        assert here("verify", written(tmp_path, found), "--plugin", plugin) == 1
        assert says in capsys.readouterr().out


def test_a_manifest_that_names_other_files(made, tmp_path, capsys):
    """Of this machine: they are not read."""
    plugin, _, texts = made
    other = tmp_path / "other.json"
    other.write_text("{}")
    manifest = json.loads(texts[submission.MANIFEST])
    manifest["files"][str(other)] = hashlib.sha256(b"{}").hexdigest()
    found = texts | {submission.MANIFEST: json.dumps(manifest).encode()}
    assert here("verify", written(tmp_path, found), "--plugin", plugin) == 1
    wrong = [x for x in capsys.readouterr().out.splitlines() if x.startswith("wrong: ")]
    assert len(wrong) == 1 and "in the manifest, not in the file" in wrong[0]


def link(archive, texts):
    info = zipfile.ZipInfo("link.json")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def twice(archive, texts):
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(place(texts, BARE), b"{}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda archive, _: archive.writestr("../out.json", b"{}"), "'../out.json' leaves the fol"),
        (lambda archive, _: archive.writestr("/tmp/out.json", b"{}"), "leaves the folder"),
        (link, "'link.json' is not a regular file"),
        (twice, "is there twice"),
        (lambda archive, _: archive.writestr("bomb", b"0" * (2**26 + 1)), "is larger than 64 MiB"),
    ],
    ids=["..", "absolute", "link", "twice", "bomb"],
)
def test_an_unsafe_zip_is_not_unpacked(change, says, made, tmp_path, capsys):
    plugin, _, texts = made
    file = written(tmp_path, texts)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        change(archive, texts)
    assert here("verify", file, "--plugin", plugin) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
    assert not (tmp_path.parent / "out.json").exists()


def test_what_is_no_submission(made, tmp_path, capsys):
    plugin, file, texts = made
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "half.zip").write_bytes(file.read_bytes()[:-40])
    manifest = json.loads(texts[submission.MANIFEST])
    for name, own, says in (
        ("format", manifest | {"format": 2}, "submission format 2, this reads 1"),
        ("files", {"format": 1}, "no manifest that can be read"),
        ("unknown", manifest | {"benchmark": "none-such"}, "'none-such' is no benchmark here"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        written(folder, texts | {submission.MANIFEST: json.dumps(own).encode()})
        assert here("verify", folder / "changed.zip", "--plugin", plugin) == 2
        assert says in capsys.readouterr().err
    for name in ("text.zip", "half.zip", "missing.zip"):
        assert here("verify", tmp_path / name, "--plugin", plugin) == 2
        assert "not a submission" in capsys.readouterr().err


def test_what_is_sound(made, capsys, tmp_path):
    """All of it is recomputed, a cell is run again, and equal records make equal files."""
    plugin, file, _ = made
    assert here("verify", file, "--plugin", plugin, "--rerun", "1", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "tiny: 4 records, 3 recomputed, 1 re-run" in text and "within 5 points" in text
    assert here("verify", file, "--plugin", plugin, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["states"].values()) == {"recomputed"} and not found["problems"]
    results = file.parent
    words = ("--plugin", plugin, "--out", results, "--to", tmp_path / "again.zip")
    assert here("submit", "tiny", *words) == 0
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()


def test_counts_alone_are_self_reported(made, tmp_path, capsys):
    plugin, _, texts = made
    found = changed(texts, BARE, lambda record: record.pop("hits"))
    assert here("verify", written(tmp_path, found), "--plugin", plugin) == 0
    assert "1 self-reported, 3 recomputed" in capsys.readouterr().out


def test_made_up_bits_are_found_by_running_again(made, tmp_path, capsys):
    """Bits and counts that agree: nothing else finds them."""
    plugin, _, texts = made

    def better(record):
        flip(record, "ca", count=40, counted=True)

    found = texts
    for part in (BARE, CLP, "none/none/", "none/clp/"):
        found = changed(found, part, better)
    file = written(tmp_path, found)
    assert here("verify", file, "--plugin", plugin) == 0
    assert here("verify", file, "--plugin", plugin, "--rerun", "1", "--device", "cpu") == 1
    assert "CA is" in capsys.readouterr().out


def test_what_was_checked_is_on_the_page(made, tmp_path, capsys):
    """Kept with their states; a record that was changed afterwards has none any more."""
    plugin, file, texts = made
    words = ("--plugin", plugin, "--keep", "--out", tmp_path)
    assert here("verify", file, *words, "--rerun", "1", "--device", "cpu") == 0
    assert "kept in" in capsys.readouterr().err
    folder = tmp_path / "tiny"
    grid = suite.load(str(folder))
    there = records.of_grid(grid, folder)
    assert len(there) == len(texts) - 1
    assert sorted(verified.states(folder, there)) == ["re-run", *["recomputed"] * 3]
    page = report.render(there, grid, folder)
    assert '<td class="word">re-run</td>' in page and "counted again from its bits" in page
    # looking at less once more takes nothing away, another record of a cell is not written over
    assert here("verify", file, *words) == 0
    assert sorted(verified.states(folder, there)) == ["re-run", *["recomputed"] * 3]
    (other,) = folder.rglob("badnets/none/rate*.json")
    cheat = json.loads(other.read_text())
    cheat["metrics"]["ca"][0] -= 1
    other.write_text(json.dumps(cheat))
    assert here("verify", file, *words) == 2
    assert "another record of that cell" in capsys.readouterr().err
    there = records.of_grid(grid, folder)
    assert sorted(verified.states(folder, there)).count("not checked") == 1
    assert "not checked" in report.render(there, grid, folder)


def test_a_page_of_own_runs_has_no_states(made):
    _, file, _ = made
    folder = file.parent / "tiny"
    grid = suite.load(str(folder))
    page = report.render(records.of_grid(grid, folder), grid, folder)
    assert "bbx verify" not in page and ">checked<" not in page


def test_nothing_is_kept_where_something_is_wrong(made, tmp_path):
    plugin, _, texts = made
    found = changed(texts, BARE, lambda record: record["metrics"].update(asr=[1, 60]))
    file = written(tmp_path, found)
    assert here("verify", file, "--plugin", plugin, "--keep", "--out", tmp_path / "runs") == 1
    assert not (tmp_path / "runs").exists()

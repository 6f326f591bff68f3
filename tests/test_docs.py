"""The examples of the documentation run."""

import re
from pathlib import Path

import pytest
import torch

from backdoorbench_ext import contract, metrics, registry, suite

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="not a checkout: no docs")


def example(page, number, file):
    """The python block of that number on a page, as a plugin."""
    block = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)[number]
    file.write_text(block)
    return registry.add_file(file)


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})


@pytest.mark.parametrize(("number", "name"), [(0, "smoothing"), (1, "teacher")])
def test_adding_a_defense(number, name, tmp_path, images):
    """Each example is a plugin that keeps the contract: also killed after every epoch, the same."""
    example("adding-a-defense.md", number, tmp_path / f"{name}.py")
    method = registry.create("defenses", name)
    contract.resumes(name, tmp_path / "state", images)
    whole = method.fit(images, contract.engine(images)).state_dict()
    start = contract.engine(images).new_model().state_dict()
    assert not all(torch.equal(whole[key], start[key]) for key in whole), "it learns"


def test_adding_an_attack(tmp_path, images):
    example("adding-an-attack.md", 0, tmp_path / "bar.py")
    bar = registry.create("attacks", "bar[width=3]")
    stamped = bar.stamp(images.x)
    assert torch.equal(stamped[..., 3:], images.x[..., 3:])
    assert (stamped[..., :3].int() * 2 - images.x[..., :3].int()).abs().max() <= 1


def test_adding_more(tmp_path):
    kinds = [example("adding-more.md", 0, tmp_path / "backwards.py")]
    kinds += [example("adding-more.md", 1, tmp_path / "lost.py")]
    assert kinds == [[("executors", "backwards")], [("metrics", "lost")]]
    assert metrics.get("lost").of({"metrics": {"asr": [5, 10], "arr": [2, 10]}}, None) == 30

    class Works:
        def run(self, group, tell):
            return group

    groups = [["a"], ["b"]]
    executor = registry.create("executors", "backwards")
    assert list(executor.run(groups, Works(), None)) == [["b"], ["a"]]


def test_adding_a_network(tmp_path):
    assert example("adding-a-network.md", 0, tmp_path / "small.py") == [("models", "small")]
    checks = [check for _, check in contract.checks("models", "small", tmp_path)]
    assert [contract.outcome(check) for check in checks] == ["", ""]


def sentences(text):
    """The words of each sentence of a page: no code, no tables, no headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for block in re.split(r"\n\s*\n|\n(?=\s*[*>#]\s)", text):
        block = block.strip()
        if not block or block.startswith(("|", "#", "!")):
            continue
        block = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "x", block))
        for sentence in re.split(r"(?<=[.!?:;])\s+", " ".join(block.lstrip("*> ").split())):
            yield re.findall(r"[\w'-]+", sentence)


# of these one is written by the site's build, two show what stands elsewhere
GENERATED = {"commands.md", "index.md", "changelog.md"}
PAGES = sorted({p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")} - GENERATED)


@pytest.mark.parametrize("page", PAGES)
def test_pages_can_be_read(page):
    """docs/STYLE.md, as far as it can be counted."""
    text = (DOCS / page).read_text()
    lengths = [len(words) for words in sentences(text) if words] or [0]
    assert sum(lengths) / len(lengths) < 25 and max(lengths) <= 45
    # code that is run takes more room
    assert len(text.splitlines()) <= (90 if "```python" in text else 60)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p}" for p in PAGES)])
def test_links_lead_somewhere(page):
    file = DOCS.parent / page
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or (file.parent / target).exists(), target


# known to whoever reads such pages, or a name and no abbreviation
EVERYDAY = """
    AMD API BY CC CIFAR CPU CSV CUDA CVPR DIR ECCV EPS GB GPU GPUs HTML IBM ICCV ICLR IEEE JPEG JSON
    MB MIT NC PDF PDFs PNG RAID SHA T2T WORDS YAML
"""


@pytest.mark.parametrize("page", ["../README.md", *PAGES])
def test_abbreviations_are_explained(page):
    """In the glossary; methods by `bbx show`."""
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", (DOCS / page).read_text(), flags=re.S)
    used = set(re.findall(r"\b[A-Z][A-Z0-9]*[A-Z][A-Za-z0-9]*\b", text))
    methods = [name for kind in ("attacks", "defenses") for name in registry.modules(kind)]
    parts = {part for name in methods for part in name.upper().split("_")}
    glossary = set(re.findall(r"\w+", (DOCS / "glossary.md").read_text()))
    unknown = {word for word in used if word.upper() not in parts}
    assert not unknown - glossary - set(EVERYDAY.split())


def test_benchmarks_have_as_many_cells_as_their_page_says():
    told = {}
    rows = (DOCS / "benchmarks.md").read_text().splitlines()
    for _, names, cells, *_ in (row.split("|") for row in rows if row.startswith("| `")):
        counts = [int(count) for count in re.findall(r"\d+", cells)]
        if counts:
            told |= dict(zip(re.findall(r"`(\w+)`", names), counts, strict=True))
    assert len(told) > 20
    assert told == {name: len(suite.load(name).cells()) for name in told}

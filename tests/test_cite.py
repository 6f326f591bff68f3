"""BibTeX: every method that has a paper names it where it can be read."""

import re

import pytest
from conftest import here

from backdoorbench_ext import registry
from backdoorbench_ext.cite import cite, found
from backdoorbench_ext.errors import InputError

METHODS = [
    (kind, name)
    for kind in ("attacks", "defenses")
    for name, module in registry.modules(kind).items()
    if name != "none" and module.startswith("backdoorbench_ext.")
]


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_method_names_its_paper(kind, name):
    paper = found(kind, name)
    assert paper and 2000 < int(paper["year"]) < 2030
    assert re.match(r"https://(arxiv\.org/abs/|openreview\.net/|doi\.org/)", paper["url"])
    assert paper["authors"][0].isupper() and "." not in paper["authors"].replace(" al.", "")


def test_entries(capsys):
    """Methods that share a paper have one entry; what has none has none."""
    text = cite(["cbd[t1=3]", "fp", "ft", "none"])
    assert re.findall(r"@\w+\{([^,]+),", text) == ["backdoorbench_ext", "cbd2023", "fp2018"]
    assert "author = {Zhang and Liu and Wang and Lu and Hu}" in text
    assert "booktitle = {CVPR}" in text and "https://arxiv.org/abs/2303.06818}" in text
    assert "author = {Hu and others}" in cite(["mcci"])
    # an attack and a defense may have one name
    with pytest.raises(InputError, match="among the defenses"):
        cite([], ["smooth"], ["smooth"])
    assert text.count("{") == text.count("}")
    assert here("cite") == 0 and capsys.readouterr().out.startswith("@software")
    assert here("cite", "cbdd") == 2
    assert "Did you mean 'cbd'" in capsys.readouterr().err

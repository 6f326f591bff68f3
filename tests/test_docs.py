"""The examples of the documentation run."""

import re
from pathlib import Path

import pytest
import torch
from test_methods import engine, killed

from backdoorbench_ext import registry

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-defense.md"


@pytest.mark.skipif(not PAGE.exists(), reason="not a checkout: no docs")
@pytest.mark.parametrize(("number", "name"), [(0, "smooth"), (1, "teacher")])
def test_adding_a_defense(number, name, tmp_path, monkeypatch, images):
    """Each example is a plugin that keeps the contract: also killed after every epoch, the same."""
    monkeypatch.setattr(registry, "_plugins", {})
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[number]
    file = tmp_path / f"{name}.py"
    file.write_text(block)
    registry.add_file(file)
    method = registry.create("defenses", name)
    whole = method.fit(images, engine(images)).state_dict()
    again = killed(tmp_path, lambda **more: method.fit(images, engine(images, **more))).state_dict()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    start = engine(images).new_model().state_dict()
    assert not all(torch.equal(whole[key], start[key]) for key in whole), "it learns"

"""A sweep over a tiny recipe: `swept(text)` writes its file and loads it."""

from __future__ import annotations

import pytest

from compress.recipe.sweep import load

PRUNED = "[{prune: {method: sparsegpt, sparsity: 0.5}}, {quantize: {method: gptq, group_size: 32}}]"


@pytest.fixture
def swept(recipe, tmp_path, monkeypatch):
    """Write sweep.yaml beside mine.yaml, in the working directory."""
    recipe(PRUNED)
    monkeypatch.chdir(tmp_path)

    def write(text, **fields):
        lines = [f"{key}: {value}" for key, value in fields.items()]
        (tmp_path / "sweep.yaml").write_text("\n".join(["version: 1", text, *lines]) + "\n")
        return load("./sweep.yaml")

    return write

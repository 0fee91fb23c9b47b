"""A recipe for a tiny teacher, and the headers of that teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.recipe.load import load
from compress.teacher import headers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe_for(tmp_path, monkeypatch):
    """Write a small recipe for a model and load it: `recipe_for(folder, "quantize.bits=8")`."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mine.yaml"

    def make(folder, *sets):
        path.write_text(
            "version: 1\n"
            f"teacher: {{model: {folder}, dtype: float32}}\n"
            f"calibration: {{set: {ROOT}/eval/texts/heldout.txt, samples: 8, seq_len: 32}}\n"
            "stages:\n  - quantize: {method: rtn, bits: 4, group_size: 32}\n"
            "evaluate: {suite: none}\n"
        )
        return load(str(path), sets)

    return make


def headers_of(folder):
    return headers.read(str(folder))

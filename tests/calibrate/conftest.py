from __future__ import annotations

import pytest

from compress.recipe.schema import Calibration
from compress.surgery import load


@pytest.fixture(scope="session")
def tokenizer(tiny_tied):
    """Bytes as tokens; a chat template of special tokens."""
    return load.tokenizer(tiny_tied)


@pytest.fixture
def calibration():
    """A calibration section: `calibration("file.txt", samples=2)`."""

    def make(name="smoke", **fields):
        return Calibration(**{"set": str(name), "samples": 2, "seq_len": 8, **fields})

    return make

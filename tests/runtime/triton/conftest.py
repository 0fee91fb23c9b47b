"""Triton's interpreter, where there is no GPU: the same kernels, run by numpy."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported
WHERE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_ignore_collect(collection_path):
    """Kernels cannot be imported without it; what is left out is said in one test."""
    missing = importlib.util.find_spec("triton") is None
    return True if missing and collection_path.name != "test_there.py" else None


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run."""
    return WHERE

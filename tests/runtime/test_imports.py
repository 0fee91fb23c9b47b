"""What an engine does not wait for when it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = (
    "transformers", "torch._dynamo", "torch._inductor", "lm_eval", "datasets", "huggingface_hub",
    "pandas", "sympy", "llguidance", "matplotlib",
)  # fmt: skip
ONLY_SERVED = ("pydantic", "starlette", "uvicorn", "prometheus_client")


def imported(what: str) -> set[str]:
    """Modules that are there behind an import, in a process of its own."""
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, {what}; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(said.stdout.split())


@pytest.mark.parametrize(
    ("what", "without"),
    [
        ("compress.cli.app", ("torch", "numba", "numpy", *SLOW, *ONLY_SERVED)),
        ("compress.runtime.engine", (*SLOW, *ONLY_SERVED)),
        ("compress.runtime.server.app", SLOW),
    ],
)
def test_nothing_slow_is_imported_that_is_not_used(what, without):
    found = imported(what)
    assert what in found
    assert [one for one in without if one in found] == []

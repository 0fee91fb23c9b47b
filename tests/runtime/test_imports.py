"""What an engine does not wait for when it starts."""

from __future__ import annotations

import subprocess
import sys

SLOW = (
    "transformers", "torch._dynamo", "torch._inductor", "lm_eval", "datasets", "huggingface_hub",
    "pandas", "sympy", "llguidance", "matplotlib",
)  # fmt: skip
ONLY_SERVED = ("pydantic", "starlette", "uvicorn", "prometheus_client")


STEPS = {  # each needs what the one before it needs, and more
    "compress.cli.app": ("torch", "numba", "numpy", *SLOW, *ONLY_SERVED),
    "compress.runtime.engine": (*SLOW, *ONLY_SERVED),
    "compress.runtime.server.app": SLOW,
}


def test_nothing_slow_is_imported_that_is_not_used():
    program = "import sys\n" + "".join(f"import {one}; print(*sys.modules)\n" for one in STEPS)
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for (what, without), line in zip(STEPS.items(), said.stdout.splitlines(), strict=True):
        found = set(line.split())
        assert what in found
        assert [one for one in without if one in found] == [], what

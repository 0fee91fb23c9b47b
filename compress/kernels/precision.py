"""Which units multiply float32 matrices. Sums are float32 in every case."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let float32 products round their inputs to bfloat16, which is exact for bfloat16 inputs."""
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in torch's stubs
    cuda: Any = torch.backends.cuda.matmul
    before = cpu.fp32_precision, cuda.fp32_precision
    cpu.fp32_precision, cuda.fp32_precision = "bf16", "tf32"
    try:
        yield
    finally:
        cpu.fp32_precision, cuda.fp32_precision = before

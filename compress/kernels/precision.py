"""Which units multiply float32 matrices. Sums are float32 in every case."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in torch's stubs
_PROBES = ((1, 640, 64), (96, 640, 1536), (1024, 1536, 576))  # rows, inner, columns
_TOLERANCE = 2.0**-17  # of float32 sums this long; a factor rounded to bfloat16 is off by 2^-9


@contextlib.contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let float32 products round their inputs to bfloat16, which is exact for bfloat16 inputs."""
    cuda: Any = torch.backends.cuda.matmul
    before = _cpu.fp32_precision, cuda.fp32_precision
    _cpu.fp32_precision, cuda.fp32_precision = "bf16", "tf32"
    try:
        yield
    finally:
        _cpu.fp32_precision, cuda.fp32_precision = before


def prefer_onednn() -> bool:
    """Have float32 products made by oneDNN for the rest of the process, where it rounds nothing.

    torch leaves them to MKL, which does without AVX-512 on some makers' processors: half the speed.
    It hands them to oneDNN only when their inputs may be rounded to bfloat16. oneDNN makes use of
    that leave where it has units that gain by it, AMX on x86. Elsewhere its products are float32;
    that is not taken on trust, some are held against float64 first.

    Returns:
        Whether oneDNN multiplies from now on.
    """
    if not torch.backends.mkldnn.is_available() or torch.cpu._is_amx_tile_supported():
        return False
    before = _cpu.fp32_precision
    _cpu.fp32_precision = "bf16"
    exact = all(_error(*probe) < _TOLERANCE for probe in _PROBES)
    if not exact:
        _cpu.fp32_precision = before
    return exact


def onednn_preferred() -> bool:
    """Whether oneDNN may make float32 products as this process now stands."""
    return bool(_cpu.fp32_precision == "bf16")


def _error(rows: int, inner: int, columns: int) -> float:
    """The largest error of a product, as a share of its largest entry."""
    seeded = torch.Generator().manual_seed(0)  # the global generator belongs to the run
    left = torch.randn(rows, inner, generator=seeded)
    right = torch.randn(columns, inner, generator=seeded)
    exact = left.double() @ right.double().T
    return float(((left @ right.T).double() - exact).abs().max() / exact.abs().max())

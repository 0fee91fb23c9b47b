"""A packed matrix times a few tokens, against float64."""

from __future__ import annotations

import pytest
import torch

from compress.runtime.packed import pack
from compress.runtime.triton.products import MOST_ROWS, multiply

SCHEMES = [
    {"bits": bits, "group_size": group, "sym": sym}
    for bits in (2, 3, 4, 8) for group, sym in ((32, False), (-1, True))
]  # fmt: skip


def check(nearest, scheme, *, outputs, inputs, rows, device):
    chance = torch.Generator().manual_seed(rows)
    rounded = nearest(torch.randn(outputs, inputs, generator=chance), **scheme)
    x = torch.randn(rows, inputs, generator=chance).bfloat16()
    found = multiply(pack(rounded).on(device), x.to(device))
    assert found.dtype is torch.bfloat16
    exact = x.double() @ rounded.dequantize().double().T
    error = (found.cpu().double() - exact).abs().max() / exact.abs().max()
    assert error < 2**-8  # weights and the output are rounded to bfloat16


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_are_those_of_float64(nearest, scheme, device):
    check(nearest, scheme, outputs=24, inputs=128, rows=3, device=device)


@pytest.mark.parametrize("rows", [1, 17, MOST_ROWS])
def test_any_few_rows(nearest, rows, device):
    scheme = {"bits": 4, "group_size": 32}
    check(nearest, scheme, outputs=33, inputs=96, rows=rows, device=device)


@pytest.mark.parametrize("bits", [2, 8])
def test_rows_longer_than_a_program_reads(nearest, bits, device):
    scheme = {"bits": bits, "group_size": 32, "sym": False}
    check(nearest, scheme, outputs=16, inputs=1056 * 8 // bits, rows=2, device=device)

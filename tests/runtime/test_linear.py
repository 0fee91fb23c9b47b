"""Packed products against the weights that their codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from compress.kernels.activations import Inputs
from compress.kernels.grid import Rounded
from compress.kernels.int8 import product, round_rows
from compress.runtime.linear import linear, path
from compress.runtime.packed import reason

BF16, F32 = torch.bfloat16, torch.float32

SCHEMES = [
    ({"bits": 4, "group_size": 32}, "packed"),
    ({"bits": 4, "group_size": 64, "sym": False}, "packed"),
    ({"bits": 4, "group_size": -1}, "packed"),
    ({"bits": 3, "group_size": 64}, "packed"),
    ({"bits": 2, "group_size": 32, "sym": False}, "packed"),
    ({"bits": 8, "group_size": -1}, "packed"),
    ({"bits": 8, "group_size": -1, "sym": False}, "packed"),
    ({"bits": 8, "group_size": 64}, "packed"),
    ({"bits": 4, "group_size": 16}, "packed"),
    ({"bits": 2, "group_size": 8}, "expanded"),
]


@pytest.mark.parametrize(("scheme", "expected"), SCHEMES)
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_every_path_equals_the_dequantized_product(
    nearest: Callable[..., Rounded], scheme, expected, rows
):
    torch.manual_seed(0)
    rounded = nearest(torch.randn(96, 192), **scheme)
    x, bias = torch.randn(rows, 192).bfloat16(), torch.randn(96).bfloat16()
    made = linear(rounded, bias, BF16)
    assert made.path == expected
    exact = x.double() @ rounded.dequantize().double().T + bias.double()
    error = (made(x).double() - exact).norm() / exact.norm()
    assert error < 2**-8  # what one rounding of weights and one of the output to bfloat16 may cost


@pytest.mark.parametrize("scheme", [scheme for scheme, _ in SCHEMES])
def test_expanded_rows_are_the_weights_rounded_once(nearest: Callable[..., Rounded], scheme):
    rounded = nearest(torch.randn(48, 128), **scheme)
    which = torch.tensor([3, 0, 47, 3])
    made = linear(rounded, None, BF16)
    expected = rounded.dequantize().bfloat16()
    torch.testing.assert_close(made.rows(slice(None)), expected, rtol=0, atol=0)
    torch.testing.assert_close(made.rows(which), expected[which], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ({"bits": 4, "group_size": 4}, "groups of 4"),
        ({"bits": 2, "group_size": 8}, "groups of 8; a multiple of 16"),
    ],
)
def test_codes_that_the_kernels_cannot_read_are_expanded(nearest, shape, why):
    rounded = nearest(torch.randn(32, 64), **shape)
    assert path(rounded, BF16) == "expanded"
    assert why in reason(rounded)


def test_scales_that_bfloat16_does_not_hold_are_never_rounded_silently(nearest):
    rounded = nearest(torch.randn(32, 64), bits=4, group_size=32)
    finer = replace(rounded, scale=rounded.scale * (1 + 2**-10))
    assert "bfloat16" in reason(finer)
    assert path(finer, BF16) == "expanded"


@pytest.mark.parametrize("scheme", [scheme for scheme, _ in SCHEMES])
def test_float32_is_exact(nearest: Callable[..., Rounded], scheme):
    rounded = nearest(torch.randn(32, 64), **scheme)
    made = linear(rounded, None, F32)
    assert made.path == "expanded"
    torch.testing.assert_close(made.rows(slice(None)), rounded.dequantize(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "inputs",
    [Inputs("int8"), Inputs("int8", threshold=3.0), Inputs("int8", columns=torch.tensor([2, 5]))],
    ids=["w8a8", "dynamic", "static"],
)
def test_int8_products_are_those_of_the_kernel_bit_for_bit(inputs, dtype):
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 64, generator=draw), torch.randn(7, 64, generator=draw).to(dtype)
    rounded = replace(round_rows(weight), inputs=inputs)
    one = linear(rounded, None, dtype)
    expected = product(rounded).multiply(x)
    assert one.path == "int8"
    assert torch.equal(one(x), expected.to(dtype))
    assert (
        one.weight.nbytes <= 32 * 64 + 32 * 4
    )  # rows are filled up to sixteen where they are packed
    bias = torch.randn(24, generator=draw).to(dtype)
    assert torch.equal(linear(rounded, bias, dtype)(x), (expected + bias).to(dtype))

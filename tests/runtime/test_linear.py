"""Packed products against the weights that their codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from compress.kernels.activations import Inputs
from compress.kernels.grid import Rounded
from compress.kernels.int8 import product, round_rows
from compress.runtime.linear import FEW_ROWS, linear, path, stack

BF16, F32 = torch.bfloat16, torch.float32

SCHEMES = [
    ({"bits": 4, "group_size": 32}, "int4pack"),
    ({"bits": 4, "group_size": 64, "sym": False}, "int4pack"),
    ({"bits": 4, "group_size": -1}, "int4pack"),
    ({"bits": 3, "group_size": 64}, "int4pack"),
    ({"bits": 2, "group_size": 32, "sym": False}, "int4pack"),
    ({"bits": 8, "group_size": -1}, "int8pack"),
    ({"bits": 8, "group_size": -1, "sym": False}, "int4pack_digits"),
    ({"bits": 8, "group_size": 64}, "int4pack_digits"),
    ({"bits": 4, "group_size": 16}, "expanded"),
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
    torch.testing.assert_close(made.rows(), expected, rtol=0, atol=0)
    torch.testing.assert_close(made.rows(which), expected[which], rtol=0, atol=0)


@pytest.mark.parametrize("scheme", [scheme for scheme, _ in SCHEMES])
def test_float32_is_exact(nearest: Callable[..., Rounded], scheme):
    rounded = nearest(torch.randn(32, 64), **scheme)
    made = linear(rounded, None, F32)
    assert made.path == "expanded"
    torch.testing.assert_close(made.rows(), rounded.dequantize(), rtol=0, atol=0)


def test_shapes_that_the_packed_products_cannot_take_are_expanded(
    nearest: Callable[..., Rounded],
):
    odd_columns = nearest(torch.randn(32, 584), bits=8, group_size=-1)  # 584 % 16 = 8
    odd_rows = nearest(torch.randn(24, 64), bits=4, group_size=32)
    assert path(odd_columns, BF16) == path(odd_rows, BF16) == "expanded"


@pytest.mark.parametrize("rows", [1, 3, 7, 17, 100])
def test_int8pack_takes_any_number_of_outputs(nearest: Callable[..., Rounded], rows):
    rounded = nearest(torch.randn(rows, 80), bits=8, group_size=-1)
    x = torch.randn(2, 80).bfloat16()
    exact = x.float() @ rounded.dequantize().T
    torch.testing.assert_close(linear(rounded, None, BF16)(x).float(), exact, rtol=0.02, atol=0.05)


def test_both_sides_of_the_switch_agree(nearest: Callable[..., Rounded]):
    made = linear(nearest(torch.randn(64, 256), bits=4, group_size=64), None, BF16)
    x = torch.randn(FEW_ROWS["int4pack"] + 1, 256).bfloat16()
    torch.testing.assert_close(made(x[:-1]), made(x)[:-1], rtol=0.02, atol=0.2)


def test_only_matrices_stored_alike_are_stacked(nearest: Callable[..., Rounded]):
    first, second = torch.randn(16, 64), torch.randn(32, 64)
    four = [nearest(one, bits=4, group_size=32) for one in (first, second)]
    whole = stack(four)
    assert isinstance(whole, Rounded)
    expected = torch.cat([one.dequantize() for one in four])
    torch.testing.assert_close(whole.dequantize(), expected, rtol=0, atol=0)
    assert stack([four[0], nearest(second, bits=8, group_size=32)]) is None
    assert stack([four[0], nearest(second, bits=4, group_size=64)]) is None
    assert stack([four[0], second]) is None
    assert torch.equal(torch.as_tensor(stack([first, second])), torch.cat([first, second]))


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
    assert one.nbytes == 24 * 64 + 24 * 4
    bias = torch.randn(24, generator=draw).to(dtype)
    assert torch.equal(linear(rounded, bias, dtype)(x), (expected + bias).to(dtype))


def test_int8_products_that_share_an_input_are_stacked():
    parts = [
        replace(round_rows(torch.randn(8, 64)), inputs=Inputs("int8", threshold=3.0))
        for _ in range(3)
    ]
    x = torch.randn(5, 64).bfloat16()
    together = linear(stack(parts), None, torch.bfloat16)
    apart = [linear(part, None, torch.bfloat16)(x) for part in parts]
    assert torch.equal(together(x), torch.cat(apart, dim=-1))

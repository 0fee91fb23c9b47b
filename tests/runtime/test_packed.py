"""Packed matrices and the kernels that multiply with them, against float64."""

from __future__ import annotations

import pytest
import torch

from compress.runtime.native.expand import transposed
from compress.runtime.native.lanes import DIGITS, FLOATS, STEPS, reading
from compress.runtime.native.products import multiply
from compress.runtime.packed import pack

SCHEMES = [
    {"bits": bits, "group_size": group, "sym": sym}
    for bits in (2, 3, 4, 8) for group in (32, -1) for sym in (True, False)
]  # fmt: skip
DENSE = [None]
OURS = pytest.param(
    False, marks=pytest.mark.skipif(reading(4) == FLOATS, reason="nothing faster here")
)
both = pytest.mark.parametrize("plain", [True, OURS])


def made(nearest, scheme, outputs=56, inputs=96):
    """A matrix and its weights in float64; 56 rows fill three blocks of sixteen and a half."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    if scheme is None:
        return weight, weight.bfloat16().double()
    rounded = nearest(weight, **scheme)
    return rounded, rounded.dequantize().double()


@pytest.mark.parametrize("scheme", SCHEMES + DENSE)
def test_packed_weights_are_read_back_exactly(nearest, scheme):
    matrix, weights = made(nearest, scheme)
    packed, expected = pack(matrix), weights.bfloat16()
    assert torch.equal(packed.rows(), expected)
    which = torch.tensor([3, 55, 0, 3])
    assert torch.equal(packed.rows(which), expected[which])
    assert torch.equal(transposed(packed), expected.T)


@both
@pytest.mark.parametrize("outputs", [1, 16, 17])
def test_few_outputs_keep_zeros_of_their_own(nearest, outputs, plain):
    matrix, weights = made(nearest, {"bits": 4, "group_size": 32, "sym": False}, outputs=outputs)
    packed, x = pack(matrix), torch.ones(2, 96)
    assert torch.equal(packed.rows(), weights.bfloat16())
    assert torch.equal(transposed(packed), weights.bfloat16().T)
    exact = x.double() @ weights.T
    torch.testing.assert_close(multiply(packed, x, plain=plain).double(), exact, atol=1e-4, rtol=0)


def stepped(x, size):
    """Inputs [N, I] as whole steps of their groups, the largest being 2^13 or more."""
    groups = x.double().unflatten(-1, (-1, size))
    _, power = torch.frexp(groups.abs().amax(-1, keepdim=True))
    step = 2.0 ** (power - STEPS)
    return ((groups / step).round() * step).flatten(1)


@both
@pytest.mark.parametrize("scheme", SCHEMES + DENSE)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 9])
def test_products_are_those_of_float64_with_inputs_as_they_are_read(nearest, scheme, rows, plain):
    matrix, weights = made(nearest, scheme)
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).bfloat16().float()
    size = 32 if scheme and scheme["group_size"] == 32 else 96
    digits = scheme and reading(scheme["bits"], plain=plain) == DIGITS
    exact = (stepped(x, size) if digits else x.double()) @ weights.T
    error = (multiply(pack(matrix), x, plain=plain) - exact).abs().max() / exact.abs().max()
    assert error < 2e-6


def test_floats_keep_inputs_as_they_are(nearest):
    matrix, weights = made(nearest, {"bits": 4, "group_size": 32})
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(3))
    found = multiply(pack(matrix), x, plain=True).double()
    torch.testing.assert_close(found, x.double() @ weights.T, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize(
    "scheme", [{"bits": 4, "group_size": 32}, {"bits": 8, "group_size": -1}, None]
)
def test_a_row_is_the_same_to_the_bit_whatever_rows_are_beside_it(nearest, scheme, plain):
    packed, x = pack(made(nearest, scheme)[0]), torch.randn(11, 96)
    together = multiply(packed, x, plain=plain)
    for rows in (1, 2, 3, 4, 6):
        assert torch.equal(multiply(packed, x[4 : 4 + rows], plain=plain), together[4 : 4 + rows])


@pytest.mark.parametrize(("sym", "bits"), [(True, 4.25), (False, 4.375)])
def test_codes_lie_in_their_bits_with_a_scale_a_group_and_a_zero_where_they_differ(
    nearest, sym, bits
):
    packed = pack(made(nearest, {"bits": 4, "group_size": 64, "sym": sym}, 64, 128)[0])
    shared = 16 if sym else 0  # bytes: zeros that all groups share
    assert packed.nbytes - shared == 64 * 128 * bits / 8

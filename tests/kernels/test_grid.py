import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.kernels.grid import fit, round_to_nearest, storable

WEIGHT = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))


def error(rounded, weight=WEIGHT):
    return float((rounded.dequantize() - weight).square().sum())


@given(st.floats(-1e5, 1e5, allow_nan=False, width=32))
def test_a_storable_scale_is_exact_in_bfloat16_and_in_float16(value):
    scale = storable(torch.tensor([value]))
    assert scale.item() != 0
    assert torch.equal(scale.bfloat16().float(), scale)
    assert torch.equal(scale.half().float(), scale)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_a_search_never_does_worse_than_taking_the_extremes(bits, group_size, sym):
    plain, searched = (
        round_to_nearest(
            WEIGHT,
            *fit(WEIGHT, bits=bits, group_size=group_size, sym=sym, search=search),
            bits=bits,
            sym=sym,
        )
        for search in ("none", "mse")
    )
    assert error(searched) <= error(plain) * 1.001


def test_the_plain_symmetric_scale_is_the_largest_weight_over_seven_and_a_half():
    scale, zero = fit(WEIGHT, bits=4, group_size=64, sym=True, search="none")
    expected = WEIGHT.view(8, 2, 64).abs().amax(-1) / 7.5
    assert torch.equal(scale, storable(expected))
    assert torch.all(zero == 8)


def test_a_group_longer_on_the_positive_side_gets_a_negative_scale():
    weight = torch.full((1, 32), -0.3)
    weight[0, 0] = 1.0
    scale, _ = fit(weight, bits=2, group_size=32, sym=True, search="mse")
    assert scale.item() < 0


def test_importance_decides_which_weights_are_kept_best():
    importance = torch.ones(128)
    importance[7] = 1e6
    rounded = round_to_nearest(
        WEIGHT,
        *fit(WEIGHT, bits=3, group_size=128, sym=True, search="hessian", importance=importance),
        bits=3,
        sym=True,
    )
    plain = round_to_nearest(
        WEIGHT, *fit(WEIGHT, bits=3, group_size=128, sym=True, search="mse"), bits=3, sym=True
    )
    at = [(r.dequantize() - WEIGHT)[:, 7].square().sum() for r in (rounded, plain)]
    assert at[0] < at[1]


@pytest.mark.parametrize("sym", [True, False])
def test_zero_is_a_point_of_every_grid(sym):
    scale, zero = fit(WEIGHT + 3, bits=4, group_size=32, sym=sym, search="mse")
    nothing = round_to_nearest(torch.zeros_like(WEIGHT), scale, zero, bits=4, sym=sym)
    assert torch.all(nothing.dequantize() == 0)


def test_a_group_of_zeros_stays_zero():
    weight = torch.zeros(2, 64)
    scale, zero = fit(weight, bits=4, group_size=32, sym=False, search="mse")
    assert torch.all(round_to_nearest(weight, scale, zero, bits=4, sym=False).dequantize() == 0)

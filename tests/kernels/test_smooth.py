"""Factors of SmoothQuant and AWQ: powers of two, and better than none."""

import pytest
import torch

from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.grid import fit, round_to_nearest
from compress.kernels.int8 import round_rows
from compress.kernels.smooth import factors, grown, rounding_error, searched_factors

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(200, 64, generator=DRAW) * torch.exp(torch.randn(64, generator=DRAW))
W = torch.randn(96, 64, generator=DRAW) * torch.exp(0.3 * torch.randn(64, generator=DRAW))


def error(by):
    """Of the product of int8 inputs and int8 weights, over its squares."""
    found = round_inputs(X / by, Inputs("int8")) @ round_rows(W * by).dequantize().T
    exact = X @ W.T
    return float((found - exact).square().sum() / exact.square().sum())


def start(strength=0.5):
    return factors(X.abs().amax(0), W.abs().amax(0), strength)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_factors_are_powers_of_two_around_one(strength):
    by = start(strength)
    assert torch.equal(torch.frexp(by).mantissa, torch.full_like(by, 0.5))
    assert abs(float(by.log2().mean())) < 0.5


def test_a_strength_of_one_makes_inputs_alike_and_none_makes_weights_alike():
    inputs, weights = X.abs().amax(0), W.abs().amax(0)

    def spread(t):
        return float(t.max() / t.min())

    assert spread(inputs / start(1.0)) < 2.1
    assert spread(weights * start(0.0)) < 2.1


def test_dead_channels_are_left_alone():
    inputs = torch.tensor([0.0, 1.0, 4.0])
    by = factors(inputs, torch.ones(3), 0.5)
    assert by[0] == 1.0
    assert bool(torch.isfinite(by).all())


def test_smoothing_lowers_the_error_and_the_search_lowers_it_further():
    found = searched_factors(X, W, start(), lambda s: s)
    assert torch.equal(torch.frexp(found).mantissa, torch.full_like(found, 0.5))
    assert error(found) < error(start()) < error(torch.ones(64))


def test_factors_that_channels_share_are_found_for_all_of_them():
    rows, weight = torch.cat([X[:, :32]] * 2, 1), torch.cat([W[:, :32]] * 2, 1)
    begin = factors(X[:, :32].abs().amax(0), W[:, :32].abs().amax(0), 0.5)
    found = searched_factors(rows, weight, begin, lambda s: torch.cat([s, s]))
    assert found.shape == (32,)


def test_the_search_gives_the_same_twice():
    once, twice = (searched_factors(X, W, start(), lambda s: s) for _ in range(2))
    assert torch.equal(once, twice)


def lost(by, bits=3):
    """What rounding the weights behind factors loses of the outputs, but for cross terms."""
    return rounding_error(
        W * by, X.square().mean(0) / by.square(), bits=bits, group_size=32, sym=True, search="none"
    )


def test_growing_columns_of_large_inputs_lowers_what_rounding_loses():
    found = grown(X.square().mean(0).sqrt(), lost)
    assert torch.equal(torch.frexp(found).mantissa, torch.full_like(found, 0.5))
    assert lost(found) < 0.9 * lost(torch.ones(64))


def test_nothing_is_grown_where_that_would_lose_more():
    assert torch.equal(grown(X.square().mean(0), lambda by: float(by.max())), torch.ones(64))


def test_what_rounding_loses_is_that_of_the_grid():
    importance = X.square().mean(0)
    scale, zero = fit(W, bits=4, group_size=32, sym=True, search="mse")
    missed = round_to_nearest(W, scale, zero, bits=4, sym=True).dequantize() - W
    found = rounding_error(W, importance, bits=4, group_size=32, sym=True, search="mse")
    expected = (missed.square() * importance).sum() / (W.square() * importance).sum()
    assert abs(found - float(expected)) < 1e-6 * found

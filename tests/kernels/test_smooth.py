"""Factors of SmoothQuant: powers of two, and better than none."""

import pytest
import torch

from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.int8 import round_rows
from compress.kernels.smooth import factors, searched_factors

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

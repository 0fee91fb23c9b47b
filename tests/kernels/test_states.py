"""Hidden states held against each other: float64 oracles, and what must not matter."""

import pytest
import torch

from compress.kernels.states import apart

N, D = 6, 5


def made(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(2)]


def oracle(own, theirs, measure, shares):
    total = 0.0
    for x, t, share in zip(own.tolist(), theirs.tolist(), shares.tolist(), strict=True):
        length = sum(b * b for b in t)
        if measure == "mse":
            each = sum((a - b) ** 2 for a, b in zip(x, t, strict=True)) / length
        else:
            inner = sum(a * b for a, b in zip(x, t, strict=True))
            each = 1 - inner / (sum(a * a for a in x) * length) ** 0.5
        total += share * each
    return total


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_it_is_the_sum_that_the_definition_says(measure):
    own, theirs = made()
    shares = torch.rand(N, dtype=torch.float64).softmax(0)
    found = apart(own, theirs, measure, shares)
    assert float(found) == pytest.approx(oracle(own, theirs, measure, shares), rel=1e-12)


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_gradients_are_those_of_differences(measure):
    own, theirs = made(1)
    shares = torch.full((N,), 1 / N, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: apart(x, theirs, measure, shares), own.requires_grad_()
    )


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_nothing_is_apart_from_itself_and_a_common_scale_changes_nothing(measure):
    own, theirs = made(2)
    shares = torch.full((N,), 1 / N, dtype=torch.float64)
    assert float(apart(theirs, theirs, measure, shares)) == pytest.approx(0, abs=1e-12)
    plain = apart(own, theirs, measure, shares)
    torch.testing.assert_close(apart(300 * own, 300 * theirs, measure, shares), plain)


def test_states_of_no_length_give_numbers():
    zeros, shares = torch.zeros(2, D), torch.full((2,), 0.5)
    for measure in ("mse", "cosine"):
        assert apart(zeros, zeros, measure, shares).isfinite()

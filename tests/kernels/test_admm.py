import pytest
import torch
from oracles import admm as oracle
from oracles import squared_error

from compress.kernels.admm import admm
from compress.kernels.hessian import invert
from compress.kernels.refit import refit
from compress.kernels.sparsegpt import sparsegpt

ROWS, COLUMNS = 24, 64


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator)
    inputs = torch.randn(512, COLUMNS, generator=generator) @ mix
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    return weight, invert(inputs.T @ inputs / 512, 0.01)


def test_masks_and_weights_are_those_of_the_float64_oracle(problem):
    weight, inverse = problem
    whole = weight.numel()
    schedule = [768 + round(768 * (1 - min(1, t / 7.5)) ** 3) for t in range(1, 11)]
    found, mask = admm(weight, inverse.damped, count=768, rounds=10)
    expected, kept = oracle(weight, inverse.damped, 768, schedule)
    assert int(mask.sum()) == 768
    assert whole - int((mask == kept).sum()) <= 6
    assert torch.allclose(found[mask & kept].double(), expected[mask & kept], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("count", "of"), [(2, 4), (4, 8), (1, 16)])
def test_patterns_hold(problem, count, of):
    weight, inverse = problem
    found, mask = admm(weight, inverse.damped, count=count, of=of)
    assert (mask.view(ROWS, -1, of).sum(2) == count).all()
    assert not found[~mask].any()


@pytest.mark.parametrize(("count", "of"), [(768, None), (2, 4)])
def test_it_loses_less_than_sparsegpt_refitted(problem, count, of):
    weight, inverse = problem
    losses = []
    for found, mask in (
        sparsegpt(weight, inverse.factor(desc_act=False), count=count, of=of),
        admm(weight, inverse.damped, count=count, of=of, rounds=20),
    ):
        near = refit(weight, found, mask, inverse.damped, iterations=50)
        losses.append(squared_error(weight, near, inverse.damped))
    assert losses[1] < losses[0]


def test_a_weight_of_which_all_stays_is_what_it_was(problem):
    weight, inverse = problem
    found, mask = admm(weight, inverse.damped, count=weight.numel())
    assert mask.all()
    assert torch.allclose(found, weight, rtol=1e-3, atol=1e-3)


def test_the_weight_and_the_hessian_are_left_alone(problem):
    weight, inverse = problem
    before = weight.clone(), inverse.damped.clone()
    admm(weight, inverse.damped, count=768)
    assert torch.equal(weight, before[0])
    assert torch.equal(inverse.damped, before[1])

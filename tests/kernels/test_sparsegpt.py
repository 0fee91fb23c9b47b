import pytest
import torch
from oracles import least_squares, squared_error
from oracles import sparsegpt as oracle

from compress.kernels.gptq import gptq
from compress.kernels.grid import Rounded, fit
from compress.kernels.hessian import invert
from compress.kernels.masks import best
from compress.kernels.refit import refit
from compress.kernels.sparsegpt import sparsegpt
from compress.kernels.wanda import wanda

ROWS, COLUMNS = 24, 64


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator)
    inputs = torch.randn(512, COLUMNS, generator=generator) @ mix
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    return weight, inputs.T @ inputs / 512


def solve(weight, hessian, count, of, **options):
    inverse = invert(hessian.clone(), 0.01)
    factor = inverse.factor(desc_act=False)
    return *sparsegpt(weight, factor, count=count, of=of, **options), inverse


@pytest.mark.parametrize(
    ("count", "of", "column_block"),
    [(768, None, 128), (500, None, 16), (2, 4, 16), (4, 8, 128)],
)
def test_masks_and_weights_are_those_of_the_float64_oracle(problem, count, of, column_block):
    weight, hessian = problem
    found, mask, inverse = solve(weight, hessian, count, of, column_block=column_block)
    expected, kept = oracle(weight, inverse.damped, count, of, column_block)
    assert (mask == kept).float().mean() > 0.99  # a tie in float32 may fall otherwise
    assert torch.equal(found != 0, mask)
    same = (mask == kept).all(1)
    assert same.float().mean() > 0.8
    assert torch.allclose(found[same].double(), expected[same], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("count", [1, 500, 768, 1535])
def test_exactly_as_many_stay_as_were_asked_for(problem, count):
    for column_block in (24, 128):
        _, mask, _ = solve(*problem, count, None, column_block=column_block)
        assert int(mask.sum()) == count


@pytest.mark.parametrize(("count", "of"), [(2, 4), (4, 8), (1, 16)])
def test_every_run_of_neighbours_keeps_exactly_what_was_asked_for(problem, count, of):
    _, mask, _ = solve(*problem, count, of, column_block=24)
    assert (mask.view(ROWS, -1, of).sum(2) == count).all()


def test_column_blocks_change_nothing_where_few_neighbours_compete(problem):
    first, _, _ = solve(*problem, 2, 4, column_block=8)
    second, _, _ = solve(*problem, 2, 4, column_block=64)
    assert torch.allclose(first, second, rtol=1e-3, atol=1e-4)


def test_with_an_identity_hessian_it_prunes_by_magnitude_and_moves_nothing(problem):
    weight, _ = problem
    found, mask, _ = solve(weight, torch.eye(COLUMNS), 768, None)
    assert torch.equal(mask, best(weight.abs(), 768))
    assert torch.allclose(found, weight.masked_fill(~mask, 0.0))


def test_it_loses_less_than_wanda_does(problem):
    weight, hessian = problem
    found, _, _ = solve(weight, hessian, 768, None)
    plain = weight.masked_fill(~best(wanda(weight, hessian.diagonal()), 32, 64), 0.0)
    assert squared_error(weight, found, hessian) < squared_error(weight, plain, hessian)


def test_rows_are_pruned_alike_alone_and_together(problem):
    weight, hessian = problem
    whole, mask, inverse = solve(weight, hessian, 2, 4)
    part, kept = sparsegpt(weight[5:9], inverse.factor(desc_act=False), count=2, of=4)
    assert torch.equal(mask[5:9], kept)
    assert torch.allclose(whole[5:9], part, rtol=1e-5, atol=1e-6)


def test_refitting_arrives_at_least_squares(problem):
    weight, hessian = problem
    found, mask, inverse = solve(weight, hessian, 768, None)
    expected = least_squares(weight, mask, inverse.damped)
    near = refit(weight, found, mask, inverse.damped, iterations=200)
    assert torch.equal(near != 0, mask)
    assert torch.allclose(near.double(), expected, rtol=1e-2, atol=1e-3)


def test_no_step_of_refitting_raises_the_error(problem):
    weight, hessian = problem
    found, mask, inverse = solve(weight, hessian, 2, 4)
    errors = [
        squared_error(
            weight, refit(weight, found, mask, inverse.damped, iterations=n), inverse.damped
        )
        for n in range(8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_refitting_what_is_already_right_changes_nothing(problem):
    weight, hessian = problem
    mask = torch.ones_like(weight, dtype=torch.bool)
    damped = invert(hessian.clone(), 0.01).damped
    assert torch.equal(refit(weight, weight, mask, damped, iterations=5), weight)


def test_pruning_and_rounding_in_one_loop_keep_pruned_codes_at_zero(problem):
    weight, hessian = problem
    found, mask, inverse = solve(weight, hessian, 768, None)
    factor = inverse.factor(desc_act=True)
    for sym in (True, False):
        grid = {"bits": 4, "sym": sym}
        scale, zero = fit(found, group_size=32, search="mse", **grid)
        codes = gptq(weight, factor, scale, zero, bits=4, sweeps=1, mask=mask)
        joint = Rounded(codes, scale, zero.byte(), group_size=32, **grid).dequantize()
        assert not joint[~mask].any()
        after = gptq(found, factor, scale, zero, bits=4, sweeps=0, mask=mask)
        apart = Rounded(after, scale, zero.byte(), group_size=32, **grid).dequantize()
        assert squared_error(weight, joint, hessian) < squared_error(weight, apart, hessian)

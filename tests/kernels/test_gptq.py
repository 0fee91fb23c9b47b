import itertools

import pytest
import torch
from oracles import gptq as oracle
from oracles import squared_error

from compress.kernels.gptq import gptq
from compress.kernels.grid import Rounded, fit, round_to_nearest
from compress.kernels.hessian import invert

ROWS, COLUMNS = 24, 64


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator)
    inputs = torch.randn(512, COLUMNS, generator=generator) @ mix
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    return weight, inputs.T @ inputs / 512


def solve(weight, hessian, *, bits=4, group_size=32, sym=True, **options):
    inverse = invert(hessian.clone(), 0.01)
    scale, zero = fit(
        weight, bits=bits, group_size=group_size, sym=sym, search="hessian",
        importance=inverse.curvature,
    )  # fmt: skip
    factor = inverse.factor(desc_act=True)
    codes = gptq(weight, factor, scale, zero, bits=bits, **options)
    return Rounded(codes, scale, zero.byte(), bits, COLUMNS // scale.shape[1], sym), inverse, zero


@pytest.mark.parametrize(
    ("bits", "group_size", "sym"), list(itertools.product([2, 3, 4, 8], [32, -1], [True, False]))
)
def test_codes_are_those_of_the_float64_oracle(problem, bits, group_size, sym):
    weight, hessian = problem
    rounded, inverse, zero = solve(
        weight, hessian, bits=bits, group_size=group_size, sym=sym, sweeps=0
    )
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    expected = oracle(weight, inverse.damped, rounded.scale, zero, bits, order)
    same = (rounded.codes == expected).float().mean()
    assert same > 0.995  # a tie in float32 may fall otherwise, and moves later columns
    ours, theirs = (
        squared_error(
            weight,
            Rounded(codes, rounded.scale, rounded.zero, bits, rounded.group_size, sym).dequantize(),
            hessian,
        )
        for codes in (rounded.codes, expected)
    )
    assert ours == pytest.approx(theirs, rel=0.01)


def test_gptq_with_identity_hessian_equals_rounding_to_nearest(problem):
    weight, _ = problem
    rounded, _, zero = solve(weight, torch.eye(COLUMNS), sweeps=0)
    nearest = round_to_nearest(weight, rounded.scale, zero, bits=4, sym=True)
    assert torch.equal(rounded.codes, nearest.codes)


@pytest.mark.parametrize("sweeps", [0, 2])
def test_column_block_never_changes_the_codes(problem, sweeps):
    weight, hessian = problem
    first, *_ = solve(weight, hessian, sweeps=sweeps, column_block=1)
    second, *_ = solve(weight, hessian, sweeps=sweeps, column_block=48)
    assert (first.codes == second.codes).float().mean() > 0.995


def test_gptq_beats_rounding_to_nearest_and_each_sweep_never_raises_the_damped_error(problem):
    weight, hessian = problem
    rounded, inverse, zero = solve(weight, hessian, bits=3, sweeps=0)
    nearest = round_to_nearest(weight, rounded.scale, zero, bits=3, sym=True)
    errors = [squared_error(weight, nearest.dequantize(), inverse.damped)] + [
        squared_error(
            weight, solve(weight, hessian, bits=3, sweeps=sweeps)[0].dequantize(), inverse.damped
        )
        for sweeps in (0, 1, 2, 4)
    ]
    assert errors[1] < errors[0]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors[1:]))
    assert errors[2] < errors[1]


def test_dead_columns_become_zero_and_disturb_nothing(problem):
    weight, hessian = problem
    hessian = hessian.clone()
    hessian[5], hessian[:, 5] = 0, 0
    rounded, inverse, _ = solve(weight, hessian)
    assert inverse.dead.sum() == 1
    assert torch.all(rounded.dequantize()[:, 5] == 0)


def test_the_weight_is_read_never_written(problem):
    weight, hessian = problem
    before = weight.clone()
    solve(weight, hessian)
    assert torch.equal(weight, before)


def test_shapes_and_types(problem):
    weight, hessian = problem
    for bits, group_size in itertools.product([2, 3, 4, 8], [32, -1]):
        rounded, *_ = solve(weight, hessian, bits=bits, group_size=group_size)
        groups = 1 if group_size == -1 else COLUMNS // group_size
        assert rounded.codes.shape == weight.shape
        assert rounded.codes.dtype == torch.uint8
        assert rounded.scale.shape == rounded.zero.shape == (ROWS, groups)
        assert int(rounded.codes.max()) < 2**bits


def test_the_unit_of_inputs_changes_no_code_even_where_columns_are_dead(problem):
    weight, hessian = problem
    hessian = hessian.clone()
    hessian[5:20], hessian[:, 5:20] = 0, 0
    small, large = (solve(weight, hessian * 2.0**power)[0] for power in (-24, 0))
    assert torch.equal(small.codes, large.codes)
    assert torch.equal(small.scale, large.scale)

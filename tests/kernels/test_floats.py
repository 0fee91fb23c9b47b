import dataclasses

import pytest
import torch

from compress.kernels.floats import FloatGrid, fit, global_scale
from compress.kernels.numbers import LARGEST, nearest
from tests.oracles import nearest_code, small_floats

WEIGHT = torch.randn(200, 256, generator=torch.Generator().manual_seed(1)) * 0.1
OVER = global_scale([WEIGHT])
GRIDS = {
    "fp8 channel": FloatGrid("fp8_e4m3", "float", -1),
    "fp8 block": FloatGrid("fp8_e4m3", "float", 128, scale_rows=128),
    "fp8 tensor": FloatGrid("fp8_e4m3", "float", -1, scale_rows=0),
    "nvfp4": FloatGrid("fp4_e2m1", "e4m3", 16, over=OVER),
    "mxfp4": FloatGrid("fp4_e2m1", "e8m0", 32),
}
TABLES = {"fp8_e4m3": small_floats(4, 3), "fp4_e2m1": small_floats(2, 1)}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def rounded(grid, search="mse", weight=WEIGHT, importance=None):
    return grid.round(weight, fit(weight, grid, search=search, importance=importance))


def error(found, weight=WEIGHT):
    return float((found.dequantize() - weight).double().square().sum())


@each_grid
def test_shapes(grid):
    found = rounded(grid)
    groups = 1 if grid.group_size == -1 else 256 // grid.group_size
    assert found.codes.shape == (200, 256)
    assert found.codes.dtype == torch.uint8
    assert found.scale.shape == found.zero.shape == (200, groups)
    assert found.group_size == 256 // groups
    assert found.dequantize().dtype == torch.float32


@each_grid
def test_every_weight_gets_the_nearest_of_all_numbers_times_its_scale(grid):
    weight = WEIGHT[:4].double()
    found = rounded(grid, weight=WEIGHT[:4])
    scale = found.scale.double().repeat_interleave(found.group_size, 1)
    table = TABLES[grid.numbers]
    for row, column in [(r, c) for r in range(4) for c in range(0, 256, 5)]:
        expected = nearest_code(float(weight[row, column] / scale[row, column]), table)
        assert int(found.codes[row, column]) == expected
        meant = table[expected] * float(scale[row, column])
        assert float(found.dequantize()[row, column]) == meant  # exact in float32


@each_grid
def test_a_search_never_does_worse_than_the_range_that_clips_nothing(grid):
    assert error(rounded(grid)) <= error(rounded(grid, "none"))


@pytest.mark.parametrize("name", ["nvfp4", "fp8 channel"])
def test_a_search_is_worth_its_time(name):
    assert error(rounded(GRIDS[name])) < 0.9 * error(rounded(GRIDS[name], "none"))


@each_grid
def test_importance_decides_which_weights_are_kept_best(grid):
    importance = torch.ones(256)
    importance[7] = 1e6
    found, plain = rounded(grid, "hessian", importance=importance), rounded(grid)
    at = [(r.dequantize() - WEIGHT)[:, 7].square().sum() for r in (found, plain)]
    assert at[0] < at[1]


@each_grid
def test_rows_that_share_a_scale_have_equal_ones(grid):
    scale = rounded(grid).scale
    together = grid.scale_rows or len(scale)
    for unit in scale.split(together):
        assert torch.equal(unit, unit[:1].expand_as(unit))
    assert len(scale.unique(dim=0)) >= -(-200 // together) // 2  # and others have others


@pytest.mark.parametrize("factor", [1e-6, 1.0, 300.0])
@pytest.mark.parametrize("name", ["fp8 channel", "fp8 block"])
def test_fp8_scales_are_exact_in_two_bytes(name, factor):
    scale = rounded(GRIDS[name], weight=WEIGHT * factor).scale
    assert torch.equal(scale.bfloat16().float(), scale)
    assert torch.equal(scale.half().float(), scale)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 300.0])
def test_nvfp4_scales_are_e4m3_numbers_over_a_power_of_two(factor):
    weight = WEIGHT * factor
    grid = dataclasses.replace(GRIDS["nvfp4"], over=global_scale([weight]))
    stored = rounded(grid, weight=weight).scale * grid.over
    assert torch.equal(nearest(stored, "fp8_e4m3"), stored)
    assert 224 <= stored.max() <= 448
    assert stored.min() > 0


@pytest.mark.parametrize("factor", [1e-6, 1.0, 300.0])
def test_mxfp4_scales_are_powers_of_two(factor):
    mantissa, _ = torch.frexp(rounded(GRIDS["mxfp4"], weight=WEIGHT * factor).scale)
    assert bool((mantissa == 0.5).all())


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_four_bit_weights_are_exact_in_bfloat16(name):
    dense = rounded(GRIDS[name]).dequantize()
    assert torch.equal(dense.bfloat16().float(), dense)


def test_fused_matrices_share_the_larger_of_their_global_scales():
    assert global_scale([WEIGHT, WEIGHT * 8]) == global_scale([WEIGHT * 8]) == OVER / 8


@each_grid
def test_zeros_stay_zeros(grid):
    zeros = torch.zeros(4, 256)
    if grid.over:
        grid = dataclasses.replace(grid, over=global_scale([zeros]))
    assert torch.all(rounded(grid, weight=zeros).dequantize() == 0)


@each_grid
def test_a_few_rows_at_a_time_or_all_at_once_change_nothing(grid, monkeypatch):
    whole = rounded(grid)
    monkeypatch.setattr("compress.kernels.floats._AT_ONCE", 256 * 7)
    sliced = rounded(grid)
    assert torch.equal(whole.codes, sliced.codes)
    assert torch.equal(whole.scale, sliced.scale)


def test_the_largest_weight_becomes_the_largest_number_when_nothing_is_searched():
    found = rounded(GRIDS["fp8 channel"], "none")
    assert found.scale.flatten().tolist() == pytest.approx(
        (WEIGHT.abs().amax(1) / LARGEST["fp8_e4m3"]).tolist(), rel=2**-8
    )

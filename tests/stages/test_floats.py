"""Linears rounded to floating numbers: what is shared among those that engines fuse."""

import pytest
import torch

from compress.anatomy import Linear
from compress.kernels.numbers import nearest
from compress.recipe.quantize import Quantize
from compress.recipe.scheme import scheme_for
from compress.stages.floats import inputs_of
from compress.stages.rounding import Rounder

COLUMNS = 256
LINEARS = [Linear(name, "q", rows, COLUMNS, 0) for name, rows in (("a", 192), ("b", 64))]
PRESETS = ["FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4"]


def problem(larger=1.0):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, COLUMNS, generator=generator)
    weights = {x.name: torch.randn(x.out_features, COLUMNS, generator=generator) for x in LINEARS}
    weights["b"] *= larger
    return weights, inputs.T @ inputs / 256, inputs.abs().amax(0)


def rounder(rows=16384, **fields):
    return Rounder(dict.fromkeys("ab", scheme_for(Quantize(**fields), "a")), "fail", rows)


@pytest.mark.parametrize("search", ["none", "mse", "hessian"])
@pytest.mark.parametrize("name", PRESETS)
def test_slices_of_rows_change_no_code(name, search):
    weights, hessian, peaks = problem()
    whole, records = rounder(scheme=name, scale_search=search)(LINEARS, weights, hessian, peaks)
    sliced, again = rounder(50, scheme=name, scale_search=search)(LINEARS, weights, hessian, peaks)
    for linear in weights:
        assert torch.equal(whole[linear].codes, sliced[linear].codes)
        assert torch.equal(whole[linear].scale, sliced[linear].scale)
    assert [r.relative_error for r in records] == pytest.approx(
        [r.relative_error for r in again], rel=1e-3
    )


def test_fused_matrices_share_the_scale_of_a_matrix():
    weights, hessian, peaks = problem(larger=8)
    rounded, _ = rounder(scheme="FP8")(LINEARS, weights, hessian, peaks)
    assert len({float(scale) for r in rounded.values() for scale in r.scale.flatten()}) == 1
    assert len({r.inputs.scale for r in rounded.values()}) == 1


def test_fused_matrices_share_the_global_scale():
    weights, hessian, peaks = problem(larger=8)
    rounded, _ = rounder(scheme="NVFP4")(LINEARS, weights, hessian, peaks)
    assert rounded["a"].global_scale == rounded["b"].global_scale
    for r in rounded.values():
        stored = r.scale * r.global_scale
        assert torch.equal(nearest(stored, "fp8_e4m3"), stored)


def test_blocks_of_rows_begin_anew_with_each_matrix():
    weights, hessian, peaks = problem(larger=8)
    rounded, _ = rounder(scheme="FP8_BLOCK")(LINEARS, weights, hessian, peaks)
    alone, _ = rounder(scheme="FP8_BLOCK")(LINEARS[1:], weights, hessian, peaks)
    assert torch.equal(rounded["b"].scale, alone["b"].scale)
    assert len(rounded["a"].scale.unique(dim=0)) == 2  # 192 rows are a block and a half


@pytest.mark.parametrize("name", PRESETS)
def test_error_is_that_of_the_numbers(name):
    weights, hessian, peaks = problem()
    _, records = rounder(scheme=name)(LINEARS, weights, hessian, peaks)
    bound = 1e-3 if name.startswith("FP8") else 2e-2
    assert all(0 < record.relative_error < bound for record in records)


def test_a_hessian_decides_by_how_strongly_each_input_is_driven():
    weights, hessian, peaks = problem()
    hessian += torch.diag(torch.arange(COLUMNS) % 7 * 10.0)
    errors = {
        search: rounder(method="nvfp4", scale_search=search)(LINEARS, weights, hessian, peaks)[1]
        for search in ("mse", "hessian")
    }
    at = {search: [record.relative_error for record in found] for search, found in errors.items()}
    assert all(a < b for a, b in zip(at["hessian"], at["mse"], strict=True))


def test_inputs_are_rounded_as_the_preset_says():
    peaks = torch.tensor([1.0, 7.0, 3.5])

    def rounds(name):
        return inputs_of(scheme_for(Quantize(scheme=name), "a"), peaks)

    assert rounds("NVFP4A16") is rounds("MXFP4A16") is None
    assert (rounds("FP8").scale, rounds("FP8").group_size) == (7 / 448, 0)
    assert (rounds("FP8_DYNAMIC").scale, rounds("FP8_DYNAMIC").group_size) == (None, 0)
    assert (rounds("FP8_BLOCK").scale, rounds("FP8_BLOCK").group_size) == (None, 128)
    assert (rounds("NVFP4").scale, rounds("NVFP4").group_size) == (2.0**-8, 16)  # 448 x 6 / 7 = 384
    assert (rounds("MXFP4").scale, rounds("MXFP4").group_size) == (None, 32)


def test_a_static_scale_without_observed_inputs_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="observed"):
        inputs_of(scheme_for(Quantize(scheme="FP8"), "a"), None)

import pytest
import torch

from compress.anatomy import Linear
from compress.errors import SolveError
from compress.recipe.quantize import Quantize
from compress.recipe.scheme import head_scheme
from compress.stages.rounding import Rounder

COLUMNS = 64
LINEARS = [Linear(name, "q", rows, COLUMNS, 0) for name, rows in (("a", 24), ("b", 8), ("c", 16))]


def problem(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, COLUMNS, generator=generator)
    weights = {
        x.name: torch.randn(x.out_features, COLUMNS, generator=generator).to(dtype) for x in LINEARS
    }
    return weights, inputs.T @ inputs / 256


def rounder(rows=16384, **fields):
    scheme = head_scheme(Quantize(**{"group_size": 32, "head": 4, **fields}))
    return Rounder(dict.fromkeys("abc", scheme), "fail", rows)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("rows", [1, 7, 24, 31, 48, 1000])
def test_slices_of_rows_change_no_code(method, rows):
    weights, hessian = problem()
    whole, records = rounder(method=method)(LINEARS, weights, hessian)
    sliced, again = rounder(rows, method=method)(LINEARS, weights, hessian)
    for name in weights:
        assert torch.equal(whole[name].codes, sliced[name].codes)
        assert torch.equal(whole[name].scale, sliced[name].scale)
    assert [r.relative_error for r in records] == pytest.approx(
        [r.relative_error for r in again], rel=1e-4
    )


def test_the_hessian_is_given_back_as_it_was():
    weights, hessian = problem()
    before = hessian.clone()
    rounder()(LINEARS, weights, hessian)
    assert torch.equal(hessian, before)
    singular = -100 * torch.eye(COLUMNS) + 99
    with pytest.raises(SolveError, match="not positive definite"):
        rounder()(LINEARS, weights, singular)
    assert torch.equal(singular, -100 * torch.eye(COLUMNS) + 99)


def test_without_a_hessian_errors_are_those_of_the_weights():
    weights, _ = problem(torch.float32)
    rounded, records = rounder(method="rtn")(LINEARS, weights, None)
    for record in records:
        weight = weights[record.name]
        missed = rounded[record.name].dequantize() - weight
        wanted = float(missed.square().sum() / weight.square().sum())
        assert record.relative_error == pytest.approx(wanted, rel=1e-5)


def test_turned_weights_are_rounded_as_they_lie():
    weights, hessian = problem()
    turned = {name: weight.T.contiguous().T for name, weight in weights.items()}
    first, _ = rounder()(LINEARS, weights, hessian)
    second, _ = rounder()(LINEARS, turned, hessian)
    assert all(torch.equal(first[name].codes, second[name].codes) for name in weights)

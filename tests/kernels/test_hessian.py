import pytest
import torch

from compress.errors import SolveError
from compress.kernels import hessian as room
from compress.kernels.hessian import accumulate, invert, mean, output_errors, with_energies

INPUTS = torch.randn(300, 640, generator=torch.Generator().manual_seed(2))


def hessian(parts):
    total = torch.zeros(640, 640)
    for part in parts:
        accumulate(total, part)
    return mean(total, sum(len(part) for part in parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hessian_is_that_of_float64_to_float32_precision(dtype):
    inputs = INPUTS.to(dtype)
    exact = inputs.double().T @ inputs.double() / len(inputs)
    found = hessian([inputs])
    assert torch.equal(found, found.T)
    assert (found - exact).norm() / exact.norm() < 1e-6


def test_the_hessian_does_not_depend_on_how_tokens_are_cut():
    assert torch.allclose(hessian([INPUTS]), hessian(INPUTS.split(70)), rtol=1e-5, atol=1e-6)


def test_a_hessian_of_some_tokens_with_the_energies_of_all_keeps_correlations_and_definiteness():
    some, energies = hessian([INPUTS[:80, :60].repeat(1, 11)[:, :640]]), INPUTS.square().mean(0)
    some[7] = some[:, 7] = 0.0  # a column that these tokens do not show
    sizes = some.diagonal().sqrt()
    before = some.clone()
    found = with_energies(some, energies)
    assert torch.equal(found.diagonal(), energies)
    rest = torch.arange(640) != 7
    there, here = (m[rest][:, rest] for m in (before, found))
    correlations = there / sizes[rest] / sizes[rest][:, None]
    roots = energies[rest].sqrt()
    assert torch.allclose(here / roots / roots[:, None], correlations, atol=1e-5)
    assert torch.linalg.eigvalsh(found.double()).min() > -1e-4
    assert found[7].count_nonzero() == 1


def test_bfloat16_products_leave_no_setting_behind():
    before = torch.backends.mkldnn.matmul.fp32_precision
    hessian([INPUTS.bfloat16()])
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_inverse_is_that_of_the_damped_hessian_and_its_factor_is_reordered_with_it():
    matrix = hessian([INPUTS])
    inverse = invert(matrix.clone(), 0.01)
    damped = matrix.double() + 0.01 * matrix.diagonal().mean() * torch.eye(640)
    exact = torch.linalg.inv(damped)
    assert (inverse.inverse - exact).norm() / exact.norm() < 1e-3
    for desc_act in (False, True):
        factor = inverse.factor(desc_act=desc_act)
        order, upper = factor.order, factor.upper
        assert torch.equal(upper, upper.triu())
        assert torch.allclose(upper.T @ upper, inverse.inverse[order][:, order], atol=1e-5)
        falling = matrix.diagonal()[order].diff().max() <= 0
        assert falling if desc_act else torch.equal(order, torch.arange(640))


def test_inverting_writes_the_diagonal_alone():
    matrix = hessian([INPUTS])
    damped = invert(matrix.clone(), 0.01).damped
    assert torch.all(damped.diagonal() > matrix.diagonal())
    assert torch.equal(damped.fill_diagonal_(0), matrix.fill_diagonal_(0))


def test_damping_is_raised_when_it_does_not_suffice_and_says_so():
    low_rank = INPUTS[:4].T @ INPUTS[:4] / 4
    spoiled = low_rank - 0.02 * low_rank.diagonal().mean() * torch.eye(640)
    inverse = invert(spoiled, 0.01)
    assert inverse.damp_percent > 0.01


def test_what_cannot_be_inverted_is_an_error_with_the_reason():
    with pytest.raises(SolveError, match="NaN or infinite"):
        invert(torch.full((4, 4), float("nan")), 0.01)
    with pytest.raises(SolveError, match="not positive definite"):
        invert(-100 * torch.eye(4) + 99 * torch.ones(4, 4), 0.01)


def test_output_errors_are_mean_squares_over_tokens():
    weight = torch.randn(5, 640, generator=torch.Generator().manual_seed(4))
    change = 0.1 * torch.randn(5, 640, generator=torch.Generator().manual_seed(5))
    error, energy = output_errors(weight, weight + change, hessian([INPUTS]))
    assert torch.allclose(error, (INPUTS @ change.T).square().mean(0), rtol=1e-3)
    assert torch.allclose(energy, (INPUTS @ weight.T).square().mean(0), rtol=1e-3)


def test_the_last_damping_that_is_tried_is_one(monkeypatch):
    tried = []
    monkeypatch.setattr(room, "_inverse", lambda damped: tried.append(float(damped[0, 0] - 1)))
    with pytest.raises(SolveError, match=r"raised from 0\.05 to 1\.0"):
        invert(torch.eye(4), 0.05)
    assert tried == pytest.approx([0.05, 0.5, 1.0])

"""Rows that make up for each other's errors: the best answer, an inequality, an identity."""

import itertools

import pytest
import torch

from compress.kernels import two_sided as room
from compress.kernels.gptq import gptq
from compress.kernels.grid import fit
from compress.kernels.hessian import invert
from compress.kernels.two_sided import two_sided


def factored(columns: int, seed: int):
    x = torch.randn(400, columns, generator=torch.Generator().manual_seed(seed))
    x = x @ torch.randn(columns, columns, generator=torch.Generator().manual_seed(seed + 1))
    return invert((x.T @ x) / len(x), 0.01).factor(desc_act=True)


def correlated(rows: int, seed: int) -> torch.Tensor:
    few = torch.randn(rows, rows // 4 or 1, generator=torch.Generator().manual_seed(seed))
    return few @ few.T + 0.05 * torch.eye(rows)


def problem(rows: int = 32, columns: int = 24, bits: int = 3):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    scale, zero = fit(weight, bits=bits, group_size=columns, sym=True, search="mse")
    return weight, factored(columns, 1), scale, zero, bits


def cost(weight, codes, scale, zero, factor, outputs) -> float:
    """tr(A E H Eᵀ) in float64."""
    error = weight.double() - (codes.double() - zero.double()) * scale.double()
    damped = outputs + room.DAMP_PERCENT * outputs.diagonal().mean() * torch.eye(len(outputs))
    return float((damped.double() @ error @ factor.damped.double()).mul(error).sum())


def test_outputs_that_matter_alike_and_alone_give_the_codes_of_gptq():
    weight, factor, scale, zero, bits = problem()
    alone = two_sided(weight, factor, scale, zero, outputs=torch.eye(32), bits=bits, sweeps=1)
    # a set is swept once more when all others are known
    assert torch.equal(alone, gptq(weight, factor, scale, zero, bits=bits, sweeps=2))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_that_hang_together_cost_less_than_if_they_were_taken_alone(bits):
    weight, factor, scale, zero, bits = problem(bits=bits)
    outputs = correlated(32, 5)
    together = two_sided(weight, factor, scale, zero, outputs=outputs, bits=bits)
    alone = gptq(weight, factor, scale, zero, bits=bits, sweeps=2)
    found = [cost(weight, codes, scale, zero, factor, outputs) for codes in (together, alone)]
    assert found[0] < 0.8 * found[1]


def test_two_rows_come_near_the_best_of_all_codes():
    weight, factor, scale, zero, _ = problem(rows=2, columns=2, bits=2)
    outputs = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    every = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.uint8)
    costs = [cost(weight, c.view(2, 2), scale, zero, factor, outputs) for c in every]
    found = two_sided(weight, factor, scale, zero, outputs=outputs, bits=2, sweeps=2)
    here = cost(weight, found, scale, zero, factor, outputs)
    assert here <= sorted(costs)[len(costs) // 20]


def test_the_lean_is_the_best_answer_to_fixed_errors():
    outputs = correlated(12, 3).double()
    error = torch.randn(12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    free, fixed = torch.arange(4, 12), torch.arange(4)
    lean = room._lean(outputs, error, torch.arange(4, 6), free)
    best = error.clone()
    best[free] = -torch.linalg.inv(outputs[free][:, free]) @ outputs[free][:, fixed] @ error[fixed]
    gradient = outputs @ best
    assert torch.allclose(gradient[free], torch.zeros_like(gradient[free]), atol=1e-9)
    assert torch.allclose(lean, -best[4:6])


def test_pruned_places_keep_the_zero_point():
    weight, factor, scale, zero, bits = problem()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > 0.5
    codes = two_sided(weight, factor, scale, zero, outputs=correlated(32, 5), bits=bits, mask=mask)
    assert (codes == zero.expand_as(weight))[~mask].all()


def test_outputs_that_nobody_reads_are_rounded_all_the_same():
    weight, factor, scale, zero, bits = problem()
    codes = two_sided(weight, factor, scale, zero, outputs=torch.zeros(32, 32), bits=bits)
    assert torch.equal(codes, gptq(weight, factor, scale, zero, bits=bits, sweeps=2))

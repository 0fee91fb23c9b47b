import itertools

import torch

from compress.kernels.structure import cheapest, magnitudes, refit


def problem(rows=6, columns=8, tokens=200):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), x, x.T @ x / tokens


def error(weight, x, dense):
    return float((x @ (weight - dense).T).square().sum(1).mean())


def test_refit_is_the_least_squares_solution():
    weight, x, hessian = problem()
    kept = torch.tensor([0, 2, 3, 7])
    found = refit(weight, hessian, kept, damp_percent=1e-8)
    wanted = torch.linalg.lstsq(x[:, kept].double(), (x @ weight.T).double()).solution.T
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


def test_refit_comes_nearest_to_other_outputs_when_told_what_it_lacks():
    weight, x, hessian = problem()
    kept, y = torch.tensor([1, 4, 5]), torch.randn(200, 6)
    lacks = y.T @ x / 200 - weight @ hessian
    found = refit(weight, hessian, kept, damp_percent=1e-8, lacks=lacks)
    wanted = torch.linalg.lstsq(x[:, kept].double(), y.double()).solution.T
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


def test_the_cost_of_one_unit_is_what_refitting_without_it_loses():
    weight, x, hessian = problem()
    for unit in (1, 2):
        left = cheapest(weight, torch.linalg.inv(hessian), 8 // unit - 1, unit=unit)
        losses = []
        for gone in range(8 // unit):
            kept = torch.tensor([i for i in range(8) if i // unit != gone])
            dense = torch.zeros_like(weight)
            dense[:, kept] = refit(weight, hessian, kept, damp_percent=1e-8)
            losses.append(error(weight, x, dense))
        best = min(range(len(losses)), key=losses.__getitem__)
        assert set(left.tolist()) == set(range(8 // unit)) - {best}


def test_units_removed_one_after_another_are_nearly_the_best_of_all():
    weight, x, hessian = problem()

    def loss(kept):
        dense = torch.zeros_like(weight)
        dense[:, kept] = refit(weight, hessian, kept, damp_percent=1e-8)
        return error(weight, x, dense)

    every = [loss(torch.tensor(kept)) for kept in itertools.combinations(range(8), 4)]
    found = loss(cheapest(weight, torch.linalg.inv(hessian), 4))
    assert sum(one < found for one in every) <= 3


def test_zero_columns_go_first():
    weight, _, hessian = problem()
    weight[:, [1, 6]] = 0
    assert cheapest(weight, torch.linalg.inv(hessian), 6).tolist() == [0, 2, 3, 4, 5, 7]


def test_magnitudes_are_means_over_time_and_lengths_over_samples():
    x = torch.tensor([[[1.0, -2.0], [3.0, 0.0]], [[0.0, 4.0], [0.0, 4.0]]])
    expected = torch.tensor([2.0, (1 + 16) ** 0.5])
    torch.testing.assert_close(magnitudes(x), expected)
    torch.testing.assert_close(magnitudes(x, unit=2), torch.tensor([(9 + 16) ** 0.5]))

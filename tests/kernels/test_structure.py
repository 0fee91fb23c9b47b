import itertools

import torch

from compress.kernels.structure import Moments, cheapest, magnitudes, principal, refit


def problem(rows=6, columns=8, tokens=200):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), x, x.T @ x / tokens


def error(weight, x, dense):
    return float((x @ (weight - dense).T).square().sum(1).mean())


def moments(weight, x, must=None, wish=None):
    none = torch.zeros_like(weight)
    hessian = x.T @ x / len(x)
    return Moments(len(x), hessian, none if must is None else must, none if wish is None else wish)


def fitted(weight, x, kept, **asked):
    return refit(weight, [moments(weight, x, **asked)], kept, damp_percents=[1e-8]).weight


def test_refit_is_the_least_squares_solution():
    weight, x, _ = problem()
    kept = torch.tensor([0, 2, 3, 7])
    wanted = torch.linalg.lstsq(x[:, kept].double(), (x @ weight.T).double()).solution.T
    found = fitted(weight, x, kept)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


def test_refit_comes_nearest_to_other_outputs_when_told_what_it_lacks():
    weight, x, hessian = problem()
    kept, y = torch.tensor([1, 4, 5]), torch.randn(200, 6)
    lacks = y.T @ x / 200 - weight @ hessian
    wanted = torch.linalg.lstsq(x[:, kept].double(), y.double()).solution.T
    for asked in ({"must": lacks}, {"wish": lacks}, {"must": lacks / 2, "wish": lacks / 2}):
        found = fitted(weight, x, kept, **asked)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


def test_what_the_other_half_contradicts_is_not_followed():
    weight, x, _ = problem(tokens=4000)
    kept, halves = torch.arange(8), x.split(2000)
    noise = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))
    signal = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))

    def share(*wishes):
        seen = [moments(weight, part, wish=wish) for part, wish in zip(halves, wishes, strict=True)]
        return refit(weight, seen, kept, damp_percents=(0.01, 1.0)).share

    assert share(noise[0], -noise[0]) == 0
    assert share(*noise) < 0.4
    assert share(signal, signal) > 0.9


def test_few_tokens_are_trusted_less():
    weight, x, _ = problem(columns=64, tokens=6400)
    kept, dampings = torch.arange(48), (0.001, 0.01, 0.1, 1.0)

    def damping(tokens):
        halves = [moments(weight, part) for part in x[:tokens].split(tokens // 2)]
        return refit(weight, halves, kept, damp_percents=dampings).damp_percent

    assert damping(64) > damping(6400)


def test_the_cost_of_one_unit_is_what_refitting_without_it_loses():
    weight, x, hessian = problem()
    for unit in (1, 2):
        left = cheapest(weight, torch.linalg.inv(hessian), 8 // unit - 1, unit=unit)
        losses = []
        for gone in range(8 // unit):
            kept = torch.tensor([i for i in range(8) if i // unit != gone])
            dense = torch.zeros_like(weight)
            dense[:, kept] = fitted(weight, x, kept)
            losses.append(error(weight, x, dense))
        best = min(range(len(losses)), key=losses.__getitem__)
        assert set(left.tolist()) == set(range(8 // unit)) - {best}


def test_units_removed_one_after_another_are_nearly_the_best_of_all():
    weight, x, hessian = problem()

    def loss(kept):
        dense = torch.zeros_like(weight)
        dense[:, kept] = fitted(weight, x, kept)
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


def test_principal_directions_hold_the_nearest_of_few_numbers():
    readers, x, second = problem(tokens=500)
    plain = principal(second)
    weighed = principal(second, readers.T @ readers + 1e-6 * torch.eye(8))

    def lost(directions, weight):  # when each token may be any sum of the first three
        told, wanted = weight @ directions[:, :3], weight @ x.T
        return float((wanted - told @ torch.linalg.lstsq(told, wanted)[0]).square().sum())

    generator = torch.Generator().manual_seed(1)
    others = [torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q for _ in range(20)]
    for best, rest, weight in ((plain, weighed, torch.eye(8)), (weighed, plain, readers)):
        torch.testing.assert_close(best.T @ best, torch.eye(8), rtol=1e-4, atol=1e-4)
        assert all(lost(best, weight) < lost(one, weight) for one in (rest, *others))

import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.kernels.allocation import best, smallest, total, whole

ROW = st.lists(st.tuples(st.floats(0, 10), st.integers(1, 9)), min_size=1, max_size=3)
PROBLEM = st.lists(ROW, min_size=1, max_size=4)


def split(problem):
    return [[c for c, _ in row] for row in problem], [[s * 96 for _, s in row] for row in problem]


def every(sizes):
    """The oracle: all choices there are."""
    return itertools.product(*(range(len(row)) for row in sizes))


@settings(deadline=None, max_examples=60)  # the first imports scipy
@given(problem=PROBLEM, budget=st.integers(0, 4000))
def test_the_best_choice_is_that_of_trying_them_all(problem, budget):
    costs, sizes = split(problem)
    fitting = [c for c in every(sizes) if total(sizes, c) <= budget]
    found = best(costs, sizes, budget)
    if not fitting:
        assert found is None
        return
    assert total(sizes, found) <= budget
    least = min(total(costs, choice) for choice in fitting)
    assert total(costs, found) == pytest.approx(least, rel=1e-9, abs=1e-8)


@settings(deadline=None, max_examples=60)  # the first imports scipy
@example(problem=[[(1.1754943508222875e-38, 1), (0.0, 1), (1.0, 1)]], cost_max=0.0)
@given(problem=PROBLEM, cost_max=st.floats(0, 20))
def test_the_smallest_choice_is_that_of_trying_them_all(problem, cost_max):
    costs, sizes = split(problem)
    fitting = [c for c in every(sizes) if total(costs, c) <= cost_max - 1e-7]  # off the edge
    found = smallest(costs, sizes, cost_max)
    if found is not None:
        assert total(costs, found) <= cost_max
    if fitting:
        assert total(sizes, found) <= min(total(sizes, choice) for choice in fitting)


def test_a_group_with_one_choice_takes_its_part_of_the_budget():
    costs, sizes = [[0.5], [4.0, 2.0, 1.0]], [[100], [10, 20, 30]]
    assert best(costs, sizes, 125) == (0, 1)
    assert best(costs, sizes, 130) == (0, 2)
    assert best(costs, sizes, 109) is None
    assert smallest(costs, sizes, 2.5) == (0, 1)
    assert smallest(costs, sizes, 1.4) is None


def test_costs_of_very_different_size_are_all_looked_at():
    """Costs span six decades, and most of what is to be gained lies in the small ones."""
    costs = [[10.0**-k * 4.0**-w for w in range(4)] for k in range(6)]
    sizes = [[1000 * (w + 1) + k for w in range(4)] for k in range(6)]
    budget = 14_500
    least = min(
        (total(costs, c) for c in every(sizes) if total(sizes, c) <= budget), default=math.inf
    )
    assert total(costs, best(costs, sizes, budget)) == pytest.approx(least, rel=1e-9)


def test_hundreds_of_groups_fill_the_budget_nearly():
    costs = [[(1 + g % 7) * 4.0**-b for b in (2, 3, 4, 8)] for g in range(240)]
    sizes = [[(64 + g % 5) * b for b in (2, 3, 4, 8)] for g in range(240)]
    budget = int(3.7 * sum(64 + g % 5 for g in range(240)))
    found = best(costs, sizes, budget)
    assert budget - 64 < total(sizes, found) <= budget


@given(
    parts=st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from([1, 7, 576])), min_size=1),
    last=st.sampled_from([1, 64]),
)
def test_whole_numbers_are_near_what_is_wanted_and_add_up(parts, last):
    wanted, units = [amount for amount, _ in parts], [*(unit for _, unit in parts[:-1]), last]
    sum_to = math.ceil(math.fsum(wanted))
    found = whole(wanted, units, sum_to)
    assert 0 <= sum(found) - sum_to < last
    assert all(count % unit == 0 for count, unit in zip(found, units, strict=True))
    if set(units) == {1}:
        assert all(abs(n - amount) <= 2 for n, amount in zip(found, wanted, strict=True))


def test_what_is_whole_already_stays():
    assert whole([3.0, 8.0, 2.0], [1, 4, 1], 13) == [3, 8, 2]

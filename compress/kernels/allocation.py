"""One choice for each group, the best that a budget allows: the multiple-choice knapsack.

Groups may have different numbers of choices. HiGHS (through scipy) branches and bounds until no
better solution can exist; what it answers in floats is checked in whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from compress.errors import SolveError

_SCALE = 1e4  # of the largest objective: HiGHS stops at an absolute gap of 1e-6, a part in 10¹⁰


def best(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int
) -> tuple[int, ...] | None:
    """The choices of least summed cost whose summed size fits.

    Args:
        costs: of each choice of each group, at least zero.
        sizes: of the same, in whole units.
        budget: what they may sum up to.

    Returns:
        the place of each group's choice; None where even the smallest choices do not fit.
    """
    unit = math.gcd(*(size for row in sizes for size in row)) or 1
    whole = [[size // unit for size in row] for row in sizes]
    room = budget // unit
    while sum(map(min, whole)) <= room:
        found = _solve(costs, whole, room)
        taken = sum(row[place] for row, place in zip(whole, found, strict=True))
        if taken <= budget // unit:
            return found
        room -= taken - budget // unit  # the solver's tolerance let too much in
    return None


def smallest(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], cost_max: float
) -> tuple[int, ...] | None:
    """The choices of least summed size whose summed cost fits; of several, the cheapest.

    Args:
        costs: of each choice of each group, at least zero.
        sizes: of the same, in whole units.
        cost_max: what costs may sum up to.

    Returns:
        the place of each group's choice; None where even the cheapest choices cost too much.
    """
    if math.fsum(map(min, costs)) > cost_max:
        return None
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    while low < high:  # the least size at which the best costs little enough
        middle = (low + high) // 2
        found = best(costs, sizes, middle)
        if found is not None and total(costs, found) <= cost_max:
            high = sum(row[place] for row, place in zip(sizes, found, strict=True))
        else:
            low = middle + 1
    return best(costs, sizes, high)


def total(values: Sequence[Sequence[float]], choice: Sequence[int]) -> float:
    """The sum of what was chosen."""
    return math.fsum(row[place] for row, place in zip(values, choice, strict=True))


def whole(wanted: Sequence[float], units: Sequence[int], sum_to: int) -> list[int]:
    """Whole multiples of units, each near what is wanted, that together are as many as they must.

    What rounding leaves over goes to the next. The sum is exact where the last unit is 1, else
    less than that unit more.

    Args:
        wanted: amounts, at least zero; they add up to `sum_to`, nearly.
        units: of which each is to be a multiple.
        sum_to: how many they have to be.
    """
    found: list[int] = []
    reached = 0.0
    for amount, unit in zip(wanted[:-1], units[:-1], strict=True):
        reached += amount
        found.append(unit * max(0, round((reached - sum(found)) / unit)))
    return [*found, units[-1] * -((sum(found) - sum_to) // units[-1])]


def _solve(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], room: int
) -> tuple[int, ...]:
    """One variable of zero or one for each choice: one of each group, no more than fits.

    Raises:
        SolveError: HiGHS gave up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag

    flat = np.array([cost for row in costs for cost in row])
    one_each = block_diag([np.ones((1, len(row))) for row in costs], format="csr")
    taken = np.array([[size for row in sizes for size in row]], dtype=float)
    found = milp(
        flat * (_SCALE / max(float(flat.max()), 1e-200)),
        integrality=np.ones_like(flat),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(taken, ub=room)],
        options={"mip_rel_gap": 0.0, "presolve": False},  # with it, HiGHS may print
    )
    if not found.success:
        raise SolveError(f"HiGHS found no allocation: {found.message}")
    starts = np.cumsum([0, *(len(row) for row in costs)])
    chosen = [int(np.argmax(found.x[start:stop])) for start, stop in pairwise(starts)]
    return tuple(map(_cheapest_within, costs, sizes, chosen))


def _cheapest_within(costs: Sequence[float], sizes: Sequence[int], chosen: int) -> int:
    """The cheapest choice that is no larger: costs too close to tell are all one to the solver."""
    smaller = [place for place, size in enumerate(sizes) if size <= sizes[chosen]]
    return min(smaller, key=lambda place: (costs[place], sizes[place], place != chosen))

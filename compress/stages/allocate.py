"""Share bits out under a budget: measure what each width of each group costs, choose the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from compress.errors import RecipeError
from compress.kernels.allocation import best, smallest, total
from compress.recipe.allocate import Allocate, too_tight
from compress.recipe.scheme import Scheme
from compress.results import Allocation, Share, StageResult, Width
from compress.stages.context import Context, Sizes
from compress.stages.sensitivity import Group, groups, measure, rounding
from compress.student import Student


def run(student: Student, spec: Allocate, context: Context) -> StageResult:
    """Choose the bits of every linear that the next stage rounds; no weight is changed.

    Costs add up: KL to second order of groups rounded one at a time, see `sensitivity.measure`.
    The choice of least summed cost within the budget is exact.

    Raises:
        RecipeError: the budget cannot be kept by any choice.
    """
    if context.ahead is None or context.sizes is None:
        raise RecipeError(["stages: allocate hands bits to a stage quantize behind it. Add one."])
    found = groups(student.anatomy, spec, context.ahead)
    costs = measure(student, found, rounding(spec, context), context)
    market = Market(found, costs, context.sizes, student.anatomy.weights)
    choice = market.choose(spec)
    return StageResult("allocate", "allocate", (), market.allocation(spec, choice))


@dataclass(frozen=True)
class Market:
    """Groups, what each of their choices costs in KL, and what it takes in bytes."""

    groups: Sequence[Group[Scheme]]
    costs: Sequence[Sequence[float]]
    sizes: Sizes
    weights: int  # of all block linears

    def choose(self, spec: Allocate) -> tuple[int, ...]:
        """The place of each group's choice.

        Raises:
            RecipeError: the budget cannot be kept.
        """
        budget = spec.parsed
        if budget.kl_mean is not None:
            choice = smallest(self.costs, self.nbytes, budget.kl_mean)
        elif budget.bits is not None:
            limit = math.floor(budget.bits * self.weights / 8)
            choice = self._within_blocks(limit)
        else:
            choice = self._within_files(budget.nbytes or 0)
        if choice is None:
            raise RecipeError([f"stages: allocate.budget: {self._too_tight(spec)}"])
        return choice

    def allocation(self, spec: Allocate, choice: Sequence[int]) -> Allocation:
        """What was chosen, what it costs, and what everything else would have cost."""
        size = self.sizes.artifact(self.bits(choice))
        rows = zip(self.groups, choice, self.costs, self.nbytes, strict=True)
        shares = tuple(self._share(*row) for row in rows)
        return Allocation(
            spec.written, total(self.costs, choice), size.bits_per_weight, size.size_bytes, shares
        )

    def bits(self, choice: Sequence[int]) -> dict[str, int]:
        """Bits by linear."""
        pairs = zip(self.groups, choice, strict=True)
        return {
            name: scheme.bits
            for group, place in pairs
            for name, scheme in group.schemes[place].items()
        }

    @cached_property
    def nbytes(self) -> list[tuple[int, ...]]:
        """Stored bytes of each choice of each group."""
        return [
            tuple(
                sum(self.sizes.linear(x, {x.name: s[x.name].bits}) for x in group.linears)
                for s in group.schemes
            )
            for group in self.groups
        ]

    def _within_blocks(self, limit: int) -> tuple[int, ...] | None:
        """The best whose block linears, rounded or not, take so many bytes at most."""
        narrow = self._narrowest()
        parts = self.sizes.artifact(self.bits(narrow)).parts
        taken = sum(part.after_bytes for part in parts if part.part == "block linears")
        inside = [
            row if group.block is not None else (0,) * len(row)
            for group, row in zip(self.groups, self.nbytes, strict=True)
        ]
        rest = taken - sum(row[place] for row, place in zip(inside, narrow, strict=True))
        return best(self.costs, inside, limit - rest)

    def _within_files(self, limit: int) -> tuple[int, ...] | None:
        """The best whose artifact takes so many bytes at most.

        Headers and config say more of some choices than of others, by a few hundred bytes: they
        are taken to be as short as they can be, and the room for weights shrinks until all fits.
        """
        narrow = self._narrowest()
        rest = self.sizes.artifact(self.bits(narrow)).size_bytes - sum(map(min, self.nbytes))
        room = limit - rest
        while (choice := best(self.costs, self.nbytes, room)) is not None:
            over = self.sizes.artifact(self.bits(choice)).size_bytes - limit
            if over <= 0:
                return choice
            room -= over
        return None

    def _too_tight(self, spec: Allocate) -> str:
        """Why no choice keeps the budget."""
        if spec.parsed.kl_mean is not None:
            return (
                f"{spec.written} cannot be kept: with the widest grids the predicted mean KL is "
                f"{math.fsum(map(min, self.costs)):.3g}. Allow more, or add 8 to bits."
            )
        size = self.sizes.artifact(self.bits(self._narrowest()))
        told = too_tight(spec, size.bits_per_weight, size.size_bytes)
        return told or f"{spec.written} leaves no room for any choice. Allow more."

    def _narrowest(self) -> tuple[int, ...]:
        return tuple(min(range(len(row)), key=row.__getitem__) for row in self.nbytes)

    def _share(
        self, group: Group[Scheme], place: int, costs: Sequence[float], nbytes: Sequence[int]
    ) -> Share:
        bits = [max(scheme.bits for scheme in one.values()) for one in group.schemes]
        widths = tuple(Width(*row) for row in zip(bits, costs, nbytes, strict=True))
        names = tuple(linear.name for linear in group.linears)
        return Share(names, group.block, group.kind, bits[place], widths)

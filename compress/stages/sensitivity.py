"""How much a model's output moves when only one group of linears is rounded, or pruned.

One backward walk tells it of every group and width (or sparsity): see `compress.kernels.fisher`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from compress.anatomy import Anatomy, Block, Linear
from compress.errors import SolveError
from compress.kernels import fisher
from compress.kernels.grid import Rounded
from compress.kernels.hessian import accumulate, mean, second_moment
from compress.recipe.allocate import Allocate, free, head_is_free
from compress.recipe.pruning import Pruning
from compress.recipe.quantize import Quantize
from compress.recipe.scheme import Scheme, head_scheme, scheme_for
from compress.stages.backward import Backward, Here
from compress.stages.context import Context
from compress.stages.rounding import Rounder
from compress.student import Student
from compress.surgery import gradients, inputs

DRAWS = 4  # tokens drawn at each position: with 64 windows 256 samples, a standard error of 9 %
How = TypeVar("How", Scheme, Pruning)
Part = Tensor | Rounded  # what a linear becomes
_Solver = Callable[
    [Sequence[Linear], Mapping[str, Tensor], Tensor | None], tuple[Mapping[str, Any], object]
]


@dataclass(frozen=True)
class Group(Generic[How]):
    """Linears of one block that are treated alike, or the head; and what they may get."""

    linears: tuple[Linear, ...]
    schemes: tuple[Mapping[str, How], ...]  # by linear, for each choice

    @property
    def block(self) -> int | None:
        """Index of the block; None for the head."""
        return self.linears[0].block

    @property
    def kind(self) -> str:
        """What the linears are called together: qkv, o, gate_up, down, head."""
        return self.linears[0].fused or self.linears[0].role

    @property
    def widths(self) -> tuple[tuple[int | None, ...], ...]:
        """The bits of each linear, for each choice."""
        return tuple(tuple(s[x.name].bits for x in self.linears) for s in self.schemes)


@dataclass(frozen=True)
class Trial(Generic[How]):
    """How choices are tried, and what that is called."""

    ids: Tensor  # the windows, [B, T]
    solver: Callable[[Mapping[str, How]], _Solver]  # given what linears get, by name
    unit: str  # in the journal
    step: str  # in progress records

    def solve(
        self,
        linears: Sequence[Linear],
        weights: Mapping[str, Tensor],
        hessian: Tensor | None,
        schemes: Mapping[str, How],
    ) -> dict[str, Part]:
        """What weights become, or codes; what cannot be solved and may stay dense is missing."""
        return dict(self.solver(schemes)(linears, weights, hessian)[0])

    def unit_of(self, block: int | None) -> str:
        """Of a block, or of the head."""
        return f"{self.unit}/head" if block is None else f"{self.unit}/block-{block:05d}"


def groups(anatomy: Anatomy, allocate: Allocate, quantize: Quantize) -> list[Group[Scheme]]:
    """Everything that the next stage rounds, in the order of the model, the head last.

    What an override gives bits has one choice, and so has a head that the budget does not count.
    """
    found = [g for block in anatomy.blocks for g in _of_block(block, allocate, quantize)]
    head = anatomy.head
    widths = allocate.bits if head_is_free(allocate, quantize) else (0,)
    schemes = [head_scheme(quantize, head.name, {head.name: bits}) for bits in widths]
    given = tuple({head.name: scheme} for scheme in schemes if scheme)
    return [*found, *([Group((head,), given)] if given else [])]


def _of_block(block: Block, allocate: Allocate, quantize: Quantize) -> Iterator[Group[Scheme]]:
    def alike(linear: Linear) -> tuple[str, bool]:
        return linear.fused or linear.name, free(quantize, linear.name)

    rounded = [linear for linear in block.linears if scheme_for(quantize, linear.name)]
    for (_, is_free), members in groupby(rounded, key=alike):
        linears = tuple(members)
        schemes = (
            {x.name: scheme_for(quantize, x.name, {x.name: bits}) for x in linears}
            for bits in (allocate.bits if is_free else (0,))
        )
        yield Group(linears, tuple({n: s for n, s in one.items() if s} for one in schemes))


def rounding(spec: Allocate, context: Context) -> Trial[Scheme]:
    """Round as the next stage will, if from fewer tokens and the teacher's own inputs.

    Rounding to nearest would save four tenths of the time and overrate what solvers are good at: on
    SmolLM2 they divide the error of o by 4.2, and that of gate and up by 2.2.
    """
    unsolvable = context.ahead.on_unsolvable if context.ahead else "fail"
    solver = partial(Rounder, on_unsolvable=unsolvable, rows=context.limits.solve_rows)
    return Trial(context.ids[: spec.samples, : spec.seq_len], solver, "allocate", "allocate")


def measure(
    student: Student, found: Sequence[Group[How]], trial: Trial[How], context: Context
) -> list[tuple[float, ...]]:
    """Mean KL per token, in nats, that each choice of each group causes alone.

    A finished block is in the journal; a run that goes on only carries gradients through it.

    Args:
        student: read block by block; nothing of it is changed.
        found: the groups; see `groups`.
        trial: on which tokens, and how their choices are tried.
        context: device, journal.

    Raises:
        SolveError: a linear cannot be solved, or what is measured is no number.
    """
    units: dict[str, list[Group[How]]] = {}
    for group in found:
        units.setdefault(trial.unit_of(group.block), []).append(group)
    known = {unit: context.noted(unit) for unit in units}
    if not all(known.values()):
        back = Backward(student, trial.ids, context, DRAWS, trial.step)
        walk = _Measuring(student, back, trial)
        for unit, costs in walk.costs(units, {unit for unit, note in known.items() if note}):
            if not all(math.isfinite(cost) for row in costs for cost in row):
                raise SolveError(
                    f"{unit}: its sensitivities are NaN or infinite. Check the teacher's weights, "
                    "or run in float32 (teacher.dtype: float32)."
                )
            note = {"kl": costs}
            context.note(unit, note)
            known[unit] = note
    rows = {unit: iter(note["kl"]) for unit, note in known.items() if note}
    return [tuple(next(rows[trial.unit_of(group.block)])) for group in found]


@dataclass(frozen=True)
class _Measuring(Generic[How]):
    """Every choice of every group, tried on the way back through the model."""

    student: Student
    back: Backward
    trial: Trial[How]

    def costs(
        self, units: Mapping[str, Sequence[Group[How]]], finished: set[str]
    ) -> Iterator[tuple[str, list[list[float]]]]:
        """Each unfinished unit with the KL of its groups' choices, the last block first."""
        for here in self.back.blocks():
            unit = self.trial.unit_of(here.block.index)
            if unit in units.keys() - finished:
                yield unit, self._block(here, units[unit])
        head = self.trial.unit_of(None)
        if head in units.keys() - finished:
            (group,) = units[head]
            yield head, [self._head(group, here.below)]

    def _block(self, here: Here, wanted: Sequence[Group[How]]) -> list[list[float]]:
        """KL of the choices of each group of a block."""
        choices = self._tried(here, wanted)
        moves: list[list[list[Tensor]]] = [[[] for _ in group.schemes] for group in wanted]

        def seen(slopes: gradients.Slopes) -> None:
            for group, tried, columns in zip(wanted, choices, moves, strict=True):
                for one, column in zip(tried, columns, strict=True):
                    column.append(_moved(here, group, one, slopes))

        here.carry(seen)
        seq_len = self.back.ids.shape[1]
        return [[fisher.divergence(torch.cat(c, 1), seq_len) for c in row] for row in moves]

    def _head(self, group: Group[How], above: Tensor | None) -> list[float]:
        """KL of each width of the head; a tied embedding, whose gradients come, changes with it."""
        back, head = self.back, group.linears[0]
        hessian = second_moment(back.final) if _needs_hessian([group]) else None
        costs = []
        for schemes in group.schemes:
            weights = {head.name: back.head.weight}
            tried = self.trial.solve([head], weights, hessian, schemes)
            if head.name not in tried:
                costs.append(0.0)
                continue
            dense = _dense(tried[head.name])
            change = dense - back.head.weight.float()
            moves = fisher.moved_head(back.final, back.head, change, back.drawn)
            moves = moves.view(len(moves), *back.ids.shape).sum(-1)
            if self.student.anatomy.tied and above is not None:
                entering = gradients.moved_embedding(back.walk, back.ids, dense)
                moves += torch.stack([(entering * one).sum((1, 2)) for one in above])
            costs.append(fisher.divergence(moves, back.ids.shape[1]))
        return costs

    def _tried(self, here: Here, wanted: Sequence[Group[How]]) -> list[list[dict[str, Part]]]:
        """What each group becomes by each of its choices."""
        hessians = self._hessians(here, wanted)
        found = []
        for group in wanted:
            weights = {linear.name: here.weight(linear) for linear in group.linears}
            hessian = hessians.get(group.linears[0].shares)
            found.append(
                [
                    self.trial.solve(group.linears, weights, hessian, schemes)
                    for schemes in group.schemes
                ]
            )
        return found

    def _hessians(self, here: Here, wanted: Sequence[Group[How]]) -> dict[str, Tensor]:
        """The Hessian of each input that a group's scheme asks for."""
        firsts = {
            linear.shares: linear
            for group in wanted
            if _needs_hessian([group])
            for linear in group.linears[:1]
        }
        ordered = [linear for linear in here.block.linears if linear in firsts.values()]
        device = here.parts[0].device
        totals = {
            x.shares: torch.zeros(x.in_features, x.in_features, device=device) for x in ordered
        }
        for part in here.parts if ordered else ():
            forward = inputs.Forwards(self.back.walk, here.block, here.module, [part.clone()])
            for linear in ordered:
                forward.to(linear, partial(accumulate, totals[linear.shares]))
        tokens = self.back.ids.numel()
        return {name: mean(total, tokens) for name, total in totals.items()}


def _moved(
    here: Here, group: Group[How], tried: Mapping[str, Part], slopes: gradients.Slopes
) -> Tensor:
    """How the log-probabilities move when all linears of a group are changed, [S, B]."""
    moves = torch.zeros(slopes.hidden.shape[:2], device=slopes.hidden.device)
    for linear in group.linears:
        if (part := tried.get(linear.name)) is not None:
            change = _dense(part) - here.weight(linear).float()
            name = linear.name
            moves += fisher.moved(slopes.inputs[name], change, slopes.outputs[name])
    return moves


def _dense(part: Part) -> Tensor:
    return part.float() if isinstance(part, Tensor) else part.dequantize()


def _needs_hessian(found: Sequence[Group[How]]) -> bool:
    return any(s.needs_hessian for group in found for one in group.schemes for s in one.values())

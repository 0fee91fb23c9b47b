"""Search for a shape that reaches what a recipe asks for: try a few, and keep the best.

Which are tried: `compress.searched`. Each is cut and repaired on a few windows; what it then says
of others decides.

Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 3.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.errors import RecipeError
from compress.kernels.divergence import kl
from compress.recipe.restructure import Restructure
from compress.results import Candidate, ModelShape
from compress.searched import Holds, Search, counting, parameters
from compress.shape import Shape, shape_of
from compress.stages.context import Context
from compress.stages.cutting import cut_blocks
from compress.stages.depth import Order
from compress.stages.latency import decode_seconds
from compress.stages.repair import Scores
from compress.student import Student
from compress.surgery.resize import Cut
from compress.surgery.walk import Weights, head_of, hidden_states, logits

_FIT, _ASK = 8, 2  # windows on which candidates are repaired, and others on which they are asked
_DAMP_PERCENT = 0.1  # of candidates: choosing it for each linear takes four times the time
_EVERY = 4  # tokens of which one is asked what comes next


@dataclass(frozen=True)
class Tried:
    """A candidate, and what came of it."""

    shape: Shape
    kl: float
    decode_share: float | None = None


def candidates(student: Student, spec: Restructure, context: Context) -> list[Shape]:
    """The shapes to try; none where the recipe says which. What was found is in the journal.

    Raises:
        RecipeError: none reaches what is asked for, or the model does as it is.
    """
    if not spec.searches:
        return []
    unit = student.unit("shapes")
    if (noted := context.noted(unit)) is not None:  # a clock would tell others apart now
        return [Shape(**one) for one in noted["shapes"]]
    found = _searched(student.base, spec, context)
    context.note(unit, {"shapes": [dataclasses.asdict(shape) for shape in found]})
    return found


def _searched(weights: Weights, spec: Restructure, context: Context) -> list[Shape]:
    fits, sizes = _fitting(weights, spec, context), context.sizes
    search = Search(weights, fits, sizes.divides) if sizes else Search(weights, fits)
    if flaw := search.flaw(spec):
        raise RecipeError([f"stages: restructure.{spec.target}: {flaw}"])
    return search.candidates()


def _fitting(weights: Weights, spec: Restructure, context: Context) -> Holds:
    """Whether a shape reaches what is asked for."""
    if spec.most_time is not None:
        before = shape_of(weights.config, weights.anatomy)
        most = spec.most_time * decode_seconds(weights, before)
        # less than all of its time is asked for: a clock that says otherwise is wrong
        return lambda shape: shape != before and decode_seconds(weights, shape) <= most
    if spec.most_bytes is not None and context.sizes is not None:
        sizes, most_bytes = context.sizes, spec.most_bytes
        return lambda shape: sizes.shaped(shape) <= most_bytes
    return counting(weights, spec)


def told_size(weights: Weights, shape: Shape) -> ModelShape:
    """A shape, for records."""
    count = parameters(weights, shape)
    return ModelShape(
        shape.blocks, shape.heads, shape.kv_heads, shape.channels, shape.hidden, count
    )


def told(weights: Weights, tried: Tried, chosen: Shape) -> Candidate:
    """The record of a candidate."""
    size = told_size(weights, tried.shape)
    return Candidate(size, tried.kl, tried.shape == chosen, tried.decode_share)


def tried(
    student: Student,
    spec: Restructure,
    context: Context,
    shapes: Sequence[Shape],
    order: Order,
    scores: Scores,
) -> list[Tried]:
    """Every candidate, tried; none where there is no choice. What was found is in the journal."""
    if not spec.searches:
        return []
    unit = student.unit("candidates")
    if (noted := context.noted(unit)) is not None:
        return [
            Tried(Shape(**one["shape"]), one["kl"], one["decode_share"]) for one in noted["tried"]
        ]
    asked = _Asked(student.base, context, scores)
    found = []
    for number, shape in enumerate(shapes):
        context.tell("try shapes", number, len(shapes))
        divergence = asked.after(spec, shape, order)
        share = None
        if spec.most_time is not None:
            before = shape_of(student.config, student.anatomy)
            share = decode_seconds(student, shape) / decode_seconds(student, before)
        found.append(Tried(shape, divergence, share))
    context.note(unit, {"tried": [dataclasses.asdict(one) for one in found]})
    return found


def best(found: Sequence[Tried], spec: Restructure) -> Shape:
    """Of those that are as fast as they were asked to be, or else of the fastest, the best."""
    fastest = min(one.decode_share or 0.0 for one in found)
    most = max(spec.most_time or 0.0, fastest)
    return min((x for x in found if (x.decode_share or 0.0) <= most), key=lambda x: x.kl).shape


class _Asked:
    """A teacher that was asked what comes next, on windows that candidates are not repaired on."""

    def __init__(self, teacher: Weights, context: Context, scores: Scores) -> None:
        self._teacher, self._context, self._scores = teacher, context, scores
        split = max(1, len(context.ids) - _ASK)
        self._fit, self._ask = context.ids[: min(_FIT, split)], context.ids[split:]
        if not len(self._ask):  # of a single window there is no other
            self._ask = context.ids
        self._said = self._states(teacher)

    def after(self, spec: Restructure, shape: Shape, order: Order) -> float:
        """Mean KL to a candidate, in nats a token."""
        with tempfile.TemporaryDirectory(dir=self._context.scratch) as folder:
            ledger = _Forgotten()
            student = Student(self._teacher, Path(folder), ledger)
            context = dataclasses.replace(self._context, ids=self._fit, ledger=ledger, watch=None)
            quick = spec.model_copy(update={"damp_percent": spec.damp_percent or _DAMP_PERCENT})
            left = order.left(shape.blocks)
            remains, _ = cut_blocks(student, quick, context, shape, left, self._scores)
            cut = Cut(student, remains)
            return self._divergence(cut, self._states(cut))

    def _states(self, weights: Weights) -> Tensor:
        here = self._context
        states = hidden_states(weights, self._ask, device=here.device, dtype=here.dtype)
        return states.flatten(0, 1)[_EVERY - 1 :: _EVERY]

    def _divergence(self, student: Weights, states: Tensor) -> float:
        heads = head_of(self._teacher), head_of(student)
        total = 0.0
        for ours, theirs in zip(self._said.split(256), states.split(256), strict=True):
            total += float(
                kl(
                    logits(self._teacher, ours, head=heads[0]),
                    logits(student, theirs, head=heads[1]),
                ).sum()
            )
        return total / len(states)


@dataclass
class _Forgotten:
    """A journal of something that is thrown away."""

    units: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def get(self, unit: str) -> Mapping[str, Any] | None:
        return self.units.get(unit)

    def add(self, unit: str, record: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        self.units[unit] = record

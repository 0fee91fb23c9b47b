"""Quantize the block linears, and the head when asked, by rounding to nearest or by GPTQ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from compress.kernels.hessian import second_moment
from compress.recipe.methods import INT8
from compress.recipe.schema import Quantize
from compress.recipe.scheme import Scheme, head_scheme, scheme_for
from compress.results import LinearResult, StageResult
from compress.stages import int8
from compress.stages.awq import Enlarging
from compress.stages.blockwise import as_solved, solve_blocks
from compress.stages.by_weights import solve_weights
from compress.stages.context import Context
from compress.stages.curvature import output_curvature
from compress.stages.drift import Sinks
from compress.stages.gate import Gated, with_bits
from compress.stages.learned import Learning
from compress.stages.rounding import Rounder
from compress.stages.team import Team
from compress.student import HEAD, Student
from compress.surgery.walk import hidden_states

_NONE: Mapping[str, Any] = MappingProxyType({})


def run(student: Student, spec: Quantize, context: Context) -> StageResult:
    """Quantize every targeted linear of a student, then its head when the recipe says so.

    Round to nearest needs no activations: its `relative_error` is that of the weights themselves.

    Raises:
        SolveError: a linear cannot be solved and the recipe does not say to keep it dense.
        GateMissed: a linear shows a larger error than it may, and no wider grid is asked for.
    """
    names = [linear.name for linear in student.anatomy.linears]
    found = {name: scheme_for(spec, name, context.allocated) for name in names}
    schemes = {name: scheme for name, scheme in found.items() if scheme is not None}
    outputs: dict[str, Tensor] = {}
    if spec.output_curvature:  # only the first solves: the others need none of it
        context.team.first(lambda: outputs.update(_outputs(student, schemes, spec, context)))
    solve = _solve(schemes, spec, context, kept=student.kept, outputs=outputs)
    final_states: Callable[[], Tensor] = partial(_final_states, student, context)
    if spec.method in INT8 and spec.needs_calibration:
        results = int8.round_blocks(student, spec, context, solve)
    elif spec.smooth or any(scheme.needs_hessian for scheme in schemes.values()):
        enlarging = Enlarging(solve, student) if spec.smooth else None
        results, final_states = solve_blocks(
            student,
            context,
            enlarging or solve,
            wanted=lambda linear: linear.name in schemes,
            true_sequential=spec.true_sequential,
            sinks=Sinks(spec.sink_tokens, spec.sink_weight),
            correction=spec.error_correction,
            step="quantize",
            finish=enlarging.folded if enlarging else as_solved,
            learning=_learning(student, spec, outputs),
        )
    else:
        results = solve_weights(student, context, solve, step="quantize")
    head = student.anatomy.head.name
    if scheme := head_scheme(spec, head, context.allocated):
        solve = _solve({head: scheme}, spec, context)
        results += _round_head(student, solve, context, final_states)
    return StageResult("quantize", spec.method, tuple(results))


def _solve(
    asked: Mapping[str, Scheme],
    spec: Quantize,
    context: Context,
    *,
    kept: Mapping[str, int] = _NONE,
    outputs: Mapping[str, Tensor] = _NONE,
) -> Gated:
    """What rounds linears by these schemes, on wider grids where a gate asked for them.

    `kept` names those that were pruned before: their zeros stay. `outputs`: see `Rounder`.
    """
    schemes = {n: with_bits(s, context.raised.get(n, s.bits)) for n, s in asked.items()}
    rounder = Rounder(
        schemes, spec.on_unsolvable, context.limits.solve_rows, kept=kept, outputs=outputs
    )
    return Gated(rounder, asked, context.gate)


def _learning(student: Student, spec: Quantize, outputs: Mapping[str, Tensor]) -> Learning | None:
    """How codes go on where the solver left them, if they do."""
    if not spec.learned_rounding:
        return None
    sinks = Sinks(spec.sink_tokens, spec.sink_weight)
    return Learning(
        spec.learned_rounding, sinks, spec.error_correction, outputs, student.kept.keys()
    )


def _outputs(
    student: Student, schemes: Mapping[str, Scheme], spec: Quantize, context: Context
) -> dict[str, Tensor]:
    """The curvature of the outputs of all that is still to be solved; see `curvature`."""
    open_blocks = [b for b in student.anatomy.blocks if student.finished(b.index) is None]
    linears = [x for block in open_blocks for x in block.linears if x.name in schemes]
    if not linears:
        return {}
    return output_curvature(student.base, linears, context, skipped=spec.sink_tokens)


def _round_head(
    student: Student,
    solve: Gated,
    context: Context,
    final_states: Callable[[], Tensor],
) -> list[LinearResult]:
    """Round the head; a tied embedding is the same matrix and changes with it."""
    if (found := student.finished(HEAD)) is not None:
        return found
    head = student.anatomy.head
    context.tell("quantize", 0, 1, head.name)
    hessian = peaks = None
    if solve.asked[head.name].needs_hessian:
        hessian, peaks = _moments(final_states().flatten(0, 1), context.team)
    context.team.first(lambda: _commit_head(student, solve, hessian, peaks))
    return student.finished(HEAD) or []


def _moments(states: Tensor, team: Team) -> tuple[Tensor, Tensor]:
    """The Hessian [D, D] and the peaks [D] of final hidden states [N, D] of all processes."""
    tokens = team.add_up(torch.tensor(len(states), device=states.device))
    hessian = team.add_up(second_moment(states) * (len(states) / tokens))
    return hessian, team.largest(states.abs().amax(0).float())


def _commit_head(
    student: Student, solve: Gated, hessian: Tensor | None, peaks: Tensor | None
) -> None:
    """Round the head, and make it final."""
    head = student.anatomy.head
    stored = student.anatomy.embedding if student.anatomy.tied else head.name
    weight = student.outside()[stored + ".weight"]
    rounded, results = solve([head], {head.name: weight}, hessian, peaks)
    codes = {stored: rounded[head.name]} if head.name in rounded else {}
    student.commit(HEAD, codes, results)


def _final_states(student: Student, context: Context) -> Tensor:
    """Of this process's windows."""
    ids = context.team.windows(context.ids)
    walk = partial(hidden_states, student, ids, batch_tokens=context.limits.batch_tokens)
    return walk(device=context.device, dtype=context.dtype)

"""Set weights of the block linears to zero, by magnitude, by Wanda, by SparseGPT or by ADMM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from compress.anatomy import Anatomy
from compress.kernels.grid import Rounded
from compress.recipe.prune import Prune
from compress.results import StageResult
from compress.stages.blockwise import solve_blocks
from compress.stages.by_weights import solve_weights
from compress.stages.context import Context
from compress.stages.drift import Sinks
from compress.stages.gate import Gated
from compress.stages.pruning import Part, Pruner
from compress.stages.zeros import shared_out
from compress.student import Student

_CORRELATED = 4  # of so many windows one judges what a method has chosen by energies alone


def run(student: Student, spec: Prune, context: Context) -> StageResult:
    """Prune every targeted linear of a student.

    `magnitude` needs no activations: its `relative_error` is that of the weights themselves.

    Where linears do not all get the same sparsity, what each gets is measured first: see `zeros`.

    Raises:
        SolveError: a linear cannot be solved and the recipe does not say to keep it dense.
        GateMissed: a linear shows a larger error than it may.
    """
    schemes, zeros = context.team.first(partial(shared_out, student, spec, context))
    pruner = Pruner(schemes, spec.on_unsolvable, context.limits.solve_rows)
    solve = Gated(pruner, schemes, context.gate)  # type: ignore[arg-type]  # held alike
    finish = partial(_apart, student.anatomy)
    if not spec.by_inputs:
        results = solve_weights(student, context, solve, step="prune", finish=finish)
        return StageResult("prune", spec.method, tuple(results), zeros=zeros)
    results, _ = solve_blocks(
        student,
        context,
        solve,
        wanted=lambda linear: linear.name in schemes,
        true_sequential=spec.true_sequential,
        sinks=Sinks(spec.sink_tokens, spec.sink_weight),
        correction=spec.error_correction,
        correlated=_CORRELATED if spec.by_energies else 1,
        step="prune",
        finish=finish,
    )
    return StageResult("prune", spec.method, tuple(results), zeros=zeros)


def _apart(
    anatomy: Anatomy, _: Mapping[str, Tensor], parts: Mapping[str, Part]
) -> tuple[dict[str, Rounded], dict[str, Tensor]]:
    """Codes by linear, and weights by full name, lying as their family stores them."""
    turned = {linear.name for linear in anatomy.linears if linear.transposed}
    plain = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    return (
        {name: part for name, part in parts.items() if isinstance(part, Rounded)},
        {f"{n}.weight": w.T.contiguous() if n in turned else w for n, w in plain.items()},
    )

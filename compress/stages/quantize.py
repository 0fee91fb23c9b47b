"""Quantize the block linears, and the head when asked, by rounding to nearest or by GPTQ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from compress.kernels.grid import Rounded
from compress.kernels.hessian import accumulate, mean
from compress.recipe.schema import Quantize
from compress.recipe.scheme import Scheme, head_scheme, scheme_for
from compress.results import LinearResult, StageResult
from compress.stages.blockwise import Sinks, solve_blocks
from compress.stages.context import Context
from compress.stages.rounding import Rounder
from compress.student import HEAD, Student
from compress.surgery.walk import hidden_states


def run(student: Student, spec: Quantize, context: Context) -> StageResult:
    """Quantize every targeted linear of a student, then its head when the recipe says so.

    Round to nearest needs no activations: its `relative_error` is that of the weights themselves.

    Raises:
        SolveError: a linear cannot be solved and the recipe does not say to keep it dense.
    """
    found = {linear.name: scheme_for(spec, linear.name) for linear in student.anatomy.linears}
    schemes = {name: scheme for name, scheme in found.items() if scheme is not None}
    rounder = Rounder(schemes, spec.on_unsolvable)
    final_states: Callable[[], Tensor] = partial(_final_states, student, context)
    if any(scheme.needs_hessian for scheme in schemes.values()):
        results, final_states = solve_blocks(
            student,
            context,
            rounder,
            wanted=lambda linear: linear.name in schemes,
            true_sequential=spec.true_sequential,
            sinks=Sinks(spec.sink_tokens, spec.sink_weight),
            step="quantize",
        )
    else:
        results = _round_blocks(student, rounder, context)
    if scheme := head_scheme(spec):
        results += _round_head(student, rounder, scheme, context, final_states)
    return StageResult("quantize", spec.method, tuple(results))


def _round_blocks(student: Student, rounder: Rounder, context: Context) -> list[LinearResult]:
    """Round every block without looking at activations."""
    results: list[LinearResult] = []
    blocks = student.anatomy.blocks
    for block in blocks:
        stored = student.block(block.index)
        rounded: dict[str, Rounded] = {}
        records: list[LinearResult] = []
        for linear in (linear for linear in block.linears if linear.name in rounder.schemes):
            weight = stored[linear.name + ".weight"].to(context.device).float()
            weight = weight.T.contiguous() if linear.transposed else weight
            hessian = torch.eye(linear.in_features, device=context.device)
            codes, found = rounder([linear], {linear.name: weight}, hessian)
            rounded |= codes
            records += found
        student.commit(block.index, rounded, records)
        results += records
        context.tell("quantize", block.index + 1, len(blocks))
    return results


def _round_head(
    student: Student,
    rounder: Rounder,
    scheme: Scheme,
    context: Context,
    final_states: Callable[[], Tensor],
) -> list[LinearResult]:
    """Round the head; a tied embedding is the same matrix and changes with it."""
    head = student.anatomy.head
    stored = student.anatomy.embedding if student.anatomy.tied else head.name
    context.tell("quantize", 0, 1, head.name)
    hessian = torch.eye(head.in_features)
    if scheme.needs_hessian:
        hessian = _hessian(final_states().flatten(0, 1))
    weight = student.outside()[stored + ".weight"].float()
    rounder = dataclasses.replace(rounder, schemes={head.name: scheme})
    rounded, results = rounder([head], {head.name: weight}, hessian)
    codes = {stored: rounded[head.name]} if head.name in rounded else {}
    student.commit(HEAD, codes, results)
    return results


def _final_states(student: Student, context: Context) -> Tensor:
    walk = partial(hidden_states, student, context.ids, batch_tokens=context.batch_tokens)
    return walk(device=context.device, dtype=context.dtype)


def _hessian(states: Tensor) -> Tensor:
    total = torch.zeros(states.shape[1], states.shape[1])
    for part in states.split(4096):
        accumulate(total, part)
    return mean(total, states.shape[0])

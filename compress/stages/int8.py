"""W8A8 and LLM.int8(): round blocks to int8 that multiply int8, each fed what really comes to it.

A block is watched once as it is. Then SmoothQuant's factors are folded into it, if asked for; its
linears are rounded; it is committed, and the activations pass it as it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import linear as multiply

from compress.anatomy import Block
from compress.kernels.activations import Inputs
from compress.kernels.grid import Rounded
from compress.kernels.int8 import product
from compress.recipe.schema import Quantize
from compress.recipe.scheme import Scheme
from compress.results import LinearResult
from compress.stages.blockwise import sharing
from compress.stages.context import Context
from compress.stages.inputs import Seen, watch_block
from compress.stages.smooth import Smoothed, folds, smooth
from compress.stages.stream import Stream, check
from compress.student import Student

if TYPE_CHECKING:
    from compress.stages.gate import Gated

_NAMED = 8  # columns that a record names


def round_blocks(
    student: Student, spec: Quantize, context: Context, solve: Gated
) -> list[LinearResult]:
    """Round the blocks of a student one after another, behind those that are rounded already.

    Returns:
        One record a linear.
    """
    stream, blocks = Stream(student, context), student.anatomy.blocks
    results: list[LinearResult] = []
    for block in blocks:
        if not any(linear.name in solve.asked for linear in block.linears):
            continue
        found = student.finished(block.index)
        if found is None:
            context.tell("quantize", block.index, len(blocks), block.prefix)
            found = _round_block(student, spec, block, stream, solve)
        results += found
        context.tell("quantize", block.index + 1, len(blocks))
    return results


def _round_block(
    student: Student, spec: Quantize, block: Block, stream: Stream, solve: Gated
) -> list[LinearResult]:
    parts = stream.before(block.index)
    stored = student.block(block.index)
    threshold = spec.threshold if spec.method == "llm_int8" else 0.0
    with stream.walk.filled(block.index, stored) as module:
        hessians = spec.solver == "gptq"
        seen = watch_block(stream.walk, block, module, parts, threshold, hessians=hessians)
    found = Smoothed({}, seen)
    if spec.smooth is not None and spec.smooth != "awq":
        coded = student.coded(block.index)
        places = list(folds(block, student.config, solve.asked, coded))
        found = smooth(places, stored, seen, spec.smooth)
    rounded, records = _rounded(block, {**stored, **found.tensors}, found.seen, solve, threshold)
    student.commit(block.index, rounded, records, found.tensors)
    with stream.walk.filled(block.index) as module:
        for part in parts:
            part.copy_(stream.walk.call(block.index, module, part))
    check(block, parts)
    stream.passed(block.index)
    return records


def _rounded(
    block: Block,
    tensors: Mapping[str, Tensor],
    seen: Mapping[str, Seen],
    solve: Gated,
    threshold: float,
) -> tuple[dict[str, Rounded], list[LinearResult]]:
    rounded: dict[str, Rounded] = {}
    records: list[LinearResult] = []
    for group in sharing(block, lambda linear: linear.name in solve.asked):
        fed = seen[group[0].shares]
        weights = {x.name: x.turned(tensors[x.name + ".weight"].to(fed.rows.device)) for x in group}
        probing = replace(solve, rounder=replace(solve.rounder, probe=fed.rows))
        codes, found = probing(group, weights, fed.hessian, fed.largest)
        rounded |= codes
        records += [_told(record, fed, threshold) for record in found]
    return rounded, records


def _told(record: LinearResult, fed: Seen, threshold: float) -> LinearResult:
    """The record of a linear, with its outlier columns."""
    if not threshold or record.outcome != "solved":
        return record
    largest = fed.largest.sort(descending=True, stable=True)
    named = largest.indices[:_NAMED][largest.values[:_NAMED] >= threshold]
    return replace(
        record,
        outlier_columns=int((fed.largest >= threshold).sum()),
        outlier_share=fed.outlier_share,
        largest_columns=tuple(named.tolist()),
    )


def int8_inputs(scheme: Scheme, peaks: Tensor | None) -> Inputs:
    """How linears round their inputs to int8.

    Args:
        scheme: of method w8a8 or llm_int8.
        peaks: [I], the largest magnitude of each input column, where columns are static.
    """
    if scheme.method == "w8a8" or not scheme.threshold:
        return Inputs("int8")
    if scheme.outliers == "dynamic":
        return Inputs("int8", threshold=scheme.threshold)
    if peaks is None:
        raise ValueError("a static set of columns needs inputs that were observed")
    return Inputs("int8", columns=(peaks >= scheme.threshold).nonzero().flatten())


def product_error(x: Tensor, weight: Tensor, rounded: Rounded) -> float:
    """Squared error of the outputs over their squares, for inputs [n, I] and a weight [O, I]."""
    dense = weight.to(x)
    rounds = product(rounded)
    exact = multiply(x, dense)
    found = exact if rounds is None else rounds.multiply(x, rounded.dequantize())
    energy = float(exact.square().sum())
    return float((found - exact).square().sum()) / energy if energy else 0.0

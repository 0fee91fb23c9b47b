"""Solve a model one decoder block at a time: collect, solve, commit, carry the activations on.

One block's weights are resident, and the activations that enter it, which have passed through every
block already solved: each block is fitted to the inputs it will really get.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.errors import SolveError
from compress.kernels.grid import Rounded
from compress.kernels.hessian import accumulate, mean
from compress.results import LinearResult
from compress.stages.context import Context
from compress.student import Student
from compress.surgery import inputs
from compress.surgery.walk import Walk

Solution = tuple[dict[str, Rounded], list[LinearResult]]
Solve = Callable[[Sequence[Linear], Mapping[str, Tensor], Tensor], Solution]
"""Solve linears that share an input: given them, their weights [O, I] float32 by name and their
Hessian [I, I], return the codes of those that were solved and a record of each."""


def solve_blocks(
    student: Student,
    context: Context,
    solve: Solve,
    *,
    wanted: Callable[[Linear], bool],
    true_sequential: bool,
    step: str,
) -> tuple[list[LinearResult], Tensor]:
    """Walk a student, solving and committing each of its blocks.

    Args:
        student: read block by block; each block is committed when it is solved.
        context: windows, device, scratch.
        solve: called once for all wanted linears of a block that share an input.
        wanted: which linears to solve.
        true_sequential: collect anew after each group of linears, so that o_proj sees what the
            rounded q, k and v make of the input, and so on.
        step: what to call this in progress records.

    Returns:
        One record a linear, and the final hidden states [B, T, D] of the solved model, normed.
    """
    walk = Walk(student, device=context.device, dtype=context.dtype)
    parts = _activations(walk, context)
    blocks = student.anatomy.blocks
    results: list[LinearResult] = []
    for block in blocks:
        with walk.filled(block.index) as module:
            groups = _sharing(block, wanted)
            rounded: dict[str, Rounded] = {}
            records: list[LinearResult] = []
            for batch in [[group] for group in groups] if true_sequential else [groups]:
                hessians = _collect(walk, block, module, parts, batch)
                for group in batch:
                    context.tell(step, block.index, len(blocks), group[0].name)
                    weights = {
                        linear.name: inputs.weight(module, block, linear) for linear in group
                    }
                    codes, found = solve(group, weights, hessians.pop(group[0].shares))
                    for linear in group:
                        if linear.name in codes:
                            inputs.replace(module, block, linear, codes[linear.name].dequantize())
                    rounded |= codes
                    records += found
            student.commit(block.index, rounded, records)
            results += records
            for part in parts:
                part.copy_(walk.call(block.index, module, part))
        _check(block, parts)
        context.tell(step, block.index + 1, len(blocks))
    return results, torch.cat([walk.finish(part).cpu() for part in parts])


def _sharing(block: Block, wanted: Callable[[Linear], bool]) -> list[list[Linear]]:
    linears = [linear for linear in block.linears if wanted(linear)]
    return [list(group) for _, group in groupby(linears, key=lambda linear: linear.shares)]


def _activations(walk: Walk, context: Context) -> Sequence[Tensor]:
    """The inputs of block 0, cut into forwards: views of one tensor, a mapped file when large."""
    batch, seq_len = context.ids.shape
    rows = max(1, context.batch_tokens // seq_len)
    shape = (batch, seq_len, walk.embed(context.ids[:1]).shape[-1])
    count = shape[0] * shape[1] * shape[2]
    if count * context.dtype.itemsize > context.resident_bytes and context.device == "cpu":
        path = context.scratch / "activations.bin"
        mapped = torch.from_file(str(path), shared=True, size=count, dtype=context.dtype)
        hidden = mapped.view(shape)
    else:
        hidden = torch.empty(shape, dtype=context.dtype, device=context.device)
    parts: Sequence[Tensor] = hidden.split(rows)
    for part, ids in zip(parts, context.ids.split(rows), strict=True):
        part.copy_(walk.embed(ids))
    return parts


def _collect(
    walk: Walk,
    block: Block,
    module: nn.Module,
    parts: Sequence[Tensor],
    groups: Sequence[Sequence[Linear]],
) -> dict[str, Tensor]:
    """The Hessian of each group's shared input, by the name of what is shared."""
    firsts = [group[0] for group in groups]
    totals = {
        linear.shares: torch.zeros(linear.in_features, linear.in_features, device=parts[0].device)
        for linear in firsts
    }
    tokens = 0
    with inputs.watched(
        module, block, firsts, lambda linear, x: accumulate(totals[linear.shares], x)
    ):
        for part in parts:
            inputs.until_last(walk, block, module, part)
            tokens += part.shape[0] * part.shape[1]
    return {name: mean(total, tokens) for name, total in totals.items()}


def _check(block: Block, parts: Sequence[Tensor]) -> None:
    if not all(torch.isfinite(part).all() for part in parts):
        raise SolveError(
            f"{block.prefix}: its outputs hold NaN or infinite values. Check the teacher's "
            "weights, or run in float32 (teacher.dtype: float32)."
        )

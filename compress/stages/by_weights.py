"""Solve the linears of every block from their weights alone: nothing is walked."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compress.anatomy import Block
from compress.kernels.grid import Rounded
from compress.results import LinearResult
from compress.stages.blockwise import Finish, as_solved
from compress.stages.context import Context
from compress.stages.gate import Gated, fused
from compress.student import Student


def solve_weights(
    student: Student, context: Context, solve: Gated, *, step: str, finish: Finish = as_solved
) -> list[LinearResult]:
    """Solve and commit every block without looking at activations.

    Args:
        student: read block by block; each block is committed when it is solved.
        context: device, and who watches.
        solve: called for linears that engines fuse, together; names those that are wanted.
        step: what to call this in progress records.
        finish: called for every solved block before it is committed.

    Returns:
        One record a linear.
    """
    results: list[LinearResult] = []
    blocks = student.anatomy.blocks
    for block in blocks:
        found = student.finished(block.index)
        if found is None:
            stored = student.block(block.index)
            parts, found = _solved(block, stored, solve, context.device)
            rounded, plain = finish(stored, parts)
            student.commit(block.index, rounded, found, plain)
        results += found
        context.tell(step, block.index + 1, len(blocks))
    return results


def _solved(
    block: Block, stored: Mapping[str, Tensor], solve: Gated, device: str
) -> tuple[dict[str, Rounded], list[LinearResult]]:
    parts: dict[str, Rounded] = {}
    records: list[LinearResult] = []
    for group in fused(linear for linear in block.linears if linear.name in solve.asked):
        weights = {x.name: x.turned(stored[x.name + ".weight"].to(device)) for x in group}
        made, found = solve(group, weights, None)
        parts |= made
        records += found
    return parts, records

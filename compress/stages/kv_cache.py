"""Calibrate how keys and values are rounded when they are cached, one block at a time.

The weights are final. Each block is shown what the blocks before it really make of the windows,
their own caches rounded already; its scales are committed with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.anatomy import Block
from compress.errors import SolveError
from compress.kernels.kv import KVScales, fit, relative_error, steps
from compress.recipe.schema import KVCache
from compress.results import KVBlock, StageResult
from compress.stages.context import Context
from compress.stages.stream import Stream
from compress.student import Student
from compress.surgery import caching


def run(student: Student, spec: KVCache, context: Context) -> StageResult:
    """Give every block scales for its keys and values.

    Raises:
        SolveError: keys or values are not finite.
        ModelError: the family's attention is not computed by a function of ours.
    """
    stream, blocks = Stream(student, context), student.anatomy.blocks
    found = []
    for block in blocks:
        context.tell("kv_cache", block.index, len(blocks), block.attention)
        student.finished(block.index)
        if (cached := student.cached(block.index)) is None:
            keys, values = _seen(stream, block, context)
            cached, scales = _calibrated(block.index, keys, values, spec)
            student.commit(block.index, {}, (), kv=(cached, scales))
            if block.index + 1 < len(blocks):
                _carry_on(stream, block)
        found.append(cached)
        context.tell("kv_cache", block.index + 1, len(blocks))
    method = f"{spec.numbers}, a scale each {spec.granularity}"
    return StageResult("kv_cache", method, (), kv=tuple(found))


def _seen(stream: Stream, block: Block, context: Context) -> tuple[Tensor, Tensor]:
    """Keys and values [N, KV, D] of all windows, as one block would cache them."""
    parts = stream.before(block.index)
    keys = values = torch.empty(0)
    first, tokens = 0, sum(part.shape[0] * part.shape[1] for part in parts)
    with stream.walk.filled(block.index) as module:
        for part in parts:
            found = caching.states(stream.walk, block.index, module, part)
            by_token = [states.transpose(1, 2).flatten(0, 1) for states in found]
            if not first:
                keys, values = (_room(tokens, states, context) for states in by_token)
            last = first + len(by_token[0])
            keys[first:last], values[first:last] = by_token
            first = last
    if not (torch.isfinite(keys).all() and torch.isfinite(values).all()):
        raise SolveError(
            f"{block.attention}: its keys or values hold NaN or infinite values. Check the "
            "teacher's weights, or run in float32 (teacher.dtype: float32)."
        )
    return keys, values


def _carry_on(stream: Stream, block: Block) -> None:
    """Take the activations through a block whose cache is rounded now."""
    parts = stream.before(block.index)
    with stream.walk.filled(block.index) as module:
        for part in parts:
            part.copy_(stream.walk.call(block.index, module, part))
    stream.passed(block.index)


def _room(tokens: int, states: Tensor, context: Context) -> Tensor:
    """Where the states [n, KV, D] of all tokens will be held."""
    shape = (tokens, *states.shape[1:])
    return context.room(shape, dtype=states.dtype, device=states.device)


def _calibrated(
    index: int, keys: Tensor, values: Tensor, spec: KVCache
) -> tuple[KVBlock, KVScales]:
    """The scales for keys and values [N, KV, D] of one block, and what they lose."""
    scales: list[Tensor | None] = []
    largest, errors = [], []
    for states, rotated in ((keys, True), (values, False)):
        scale = None
        if spec.granularity != "token":
            scale = fit(
                states, spec.numbers, granularity=spec.granularity, search=spec.scale_search,
                rotated=rotated,
            )  # fmt: skip
        scales.append(None if scale is None else scale.cpu())
        largest.append(float(steps(states, scale, spec.numbers).amax()))
        errors.append(relative_error(states, scale, spec.numbers))
    told = KVBlock(index, spec.numbers, spec.granularity, *largest, *errors)
    return told, KVScales(spec.numbers, *scales)

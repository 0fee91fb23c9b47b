"""Take blocks, heads and channels away, each block repaired behind those that were cut before it.

Which shape: as the recipe says, or the best of those that reach what it asks for (`search`). Which
blocks: `depth`. How many channels in each, where they may differ: `sharing`. Which channels of the
stream: `width`. Which heads and channels, and how the rest makes up for them: `repair`, by scores
of `first_order` where they decide. Stages behind it see an ordinary model of the new shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from compress.recipe.restructure import Restructure
from compress.results import (
    BlockCut,
    LinearResult,
    ModelShape,
    Restructured,
    StageResult,
    renumbered,
)
from compress.shape import (
    Kept,
    Remains,
    Shape,
    chosen,
    narrowed,
    remains_of,
    shape_of,
    target,
)
from compress.stages import depth, first_order, search, sharing
from compress.stages.context import Context
from compress.stages.cutting import cut_blocks
from compress.stages.width import narrow
from compress.student import Student
from compress.surgery.resize import Cut
from compress.surgery.walk import Weights


def run(student: Student, spec: Restructure, context: Context) -> StageResult:
    """Give a student the shape that a recipe asks for.

    Raises:
        SolveError: what a linear reads has no finite Hessian.
        RecipeError: no shape reaches what is asked for.
    """
    before = student.base
    shape = shape_of(before.config, before.anatomy)
    shapes = search.candidates(student, spec, context)
    shapes = shapes or [target(shape, **spec.shares)]
    order = _order(student, spec, context, min(one.blocks for one in shapes))
    scores = first_order.scores(student, context) if spec.importance == "first_order" else {}
    tried = search.tried(student, spec, context, shapes, order, scores)
    found = search.best(tried, spec) if tried else shapes[0]
    left = order.left(found.blocks)
    after, shares = _channels(student, spec, context, found, left)
    width = narrow(student, spec, context, after.hidden)
    channels = width.channels if width else None
    if spec.takes_whole:
        remains, fitted = remains_of(shape, after, left), list[LinearResult]()
    else:
        remains, fitted = cut_blocks(student, spec, context, after, left, scores, channels)
    student.become(lambda past: Cut(past, remains))
    told = Restructured(
        spec.written, spec.repair, told_shape(before), told_shape(student),
        tuple(_told_blocks(before, remains, order, fitted, shares)),
        tuple(search.told(before, one, found) for one in tried), width.share if width else None,
        spec.most_time,
    )  # fmt: skip
    linears = renumbered(fitted, {was: now for now, was in enumerate(remains.blocks)})
    return StageResult("restructure", "restructure", tuple(linears), shape=told)


def _order(student: Student, spec: Restructure, context: Context, keep: int) -> depth.Order:
    """In which order blocks go; found once in a run."""
    blocks, unit = len(student.anatomy.blocks), student.unit("blocks")
    if keep == blocks:
        return depth.Order(blocks)
    if spec.blocks is not None:
        named = chosen(shape_of(student.config, student.anatomy), spec.blocks)
        return depth.Order(blocks, tuple(sorted(set(range(blocks)) - set(named))))
    if (noted := context.noted(unit)) is not None:
        lists = (tuple(noted[name]) for name in ("gone", "influence", "kl"))
        return depth.Order(blocks, *lists)
    order = depth.order(student, context, keep, measured=spec.importance != "activation")
    context.note(unit, dataclasses.asdict(order))
    return order


def _channels(
    student: Student, spec: Restructure, context: Context, after: Shape, left: Sequence[int]
) -> tuple[Shape, dict[int, float]]:
    """The shape with the channels of each block that is left, and what they cost if shared out."""
    each = student.anatomy.channels
    if spec.uniform and len(set(each)) == 1:
        return after, {}
    there = [each[index] for index in left]
    asked = there if spec.ffn is None else narrowed(there, spec.ffn)
    if spec.uniform:
        return after.with_channels(asked), {}
    shares = sharing.share_out(student, spec, context, left, sum(asked))
    return after.with_channels(shares.channels), dict(zip(left, shares.kl, strict=True))


def told_shape(weights: Weights) -> ModelShape:
    """The shape of a model, for its records."""
    shape = shape_of(weights.config, weights.anatomy)
    parameters = sum(map(math.prod, weights.anatomy.tensors.values()))
    return ModelShape(
        shape.blocks, shape.heads, shape.kv_heads, shape.channels, shape.hidden, parameters
    )


def _told_blocks(
    before: Weights,
    remains: Remains,
    order: depth.Order,
    fitted: Sequence[LinearResult],
    shares: Mapping[int, float],
) -> Iterator[BlockCut]:
    errors = {one.block: one.relative_error for one in fitted if one.role == "down"}
    numbers = {index: now for now, index in enumerate(remains.blocks)}
    kl = dict(zip(order.gone, order.kl, strict=False))
    for block in before.anatomy.blocks:
        index = block.index
        kept = remains.blocks.get(index, Kept((), (), ()))
        yield BlockCut(
            index, numbers.get(index), len(kept.heads), len(kept.kv_heads), len(kept.channels),
            order.influence[index] if order.influence else None,
            None if index in numbers else kl.get(index), errors.get(index), shares.get(index),
        )  # fmt: skip

"""Take blocks, heads and channels away, each block repaired behind those that were cut before it.

The walk keeps the shape that the model had: what goes is zero from then on, so that a block that
was cut computes what it will when the zeros are taken out. In the end they are: later stages see an
ordinary model of the new shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from compress.anatomy import Block, adds_plainly
from compress.recipe.restructure import Restructure
from compress.results import BlockCut, LinearResult, ModelShape, Restructured, StageResult
from compress.shape import Kept, Remains, Shape, shape_of, target
from compress.stages import depth
from compress.stages.blockwise import give_back_memory
from compress.stages.context import Context
from compress.stages.drift import shortfall
from compress.stages.repair import Beside, Cutting
from compress.stages.stream import Stream, check
from compress.student import Student
from compress.surgery.inputs import Forwards
from compress.surgery.resize import Cut
from compress.surgery.walk import Weights


def run(student: Student, spec: Restructure, context: Context) -> StageResult:
    """Give a student the shape that a recipe asks for.

    Raises:
        SolveError: what a linear reads has no finite Hessian.
    """
    before = student.base
    after = target(shape_of(before.config, before.anatomy), **spec.shares)
    choice = _blocks(student, spec, context, after.blocks)
    remains, fitted = cut_blocks(student, spec, context, after, choice.blocks)
    student.become(lambda past: Cut(past, remains))
    told = Restructured(
        spec.written, spec.repair, told_shape(before), told_shape(student),
        tuple(_told_blocks(before, remains, choice, fitted)),
    )  # fmt: skip
    linears = tuple(_renamed(before, student, remains, result) for result in fitted)
    return StageResult("restructure", "restructure", linears, shape=told)


def told_shape(weights: Weights) -> ModelShape:
    """The shape of a model, for its records."""
    shape = shape_of(weights.config, weights.anatomy)
    parameters = sum(map(math.prod, weights.anatomy.tensors.values()))
    return ModelShape(
        shape.blocks, shape.heads, shape.kv_heads, shape.channels, shape.hidden, parameters
    )


def _told_blocks(
    before: Weights, remains: Remains, choice: depth.Choice, fitted: Sequence[LinearResult]
) -> Iterator[BlockCut]:
    errors = {one.block: one.relative_error for one in fitted if one.role == "down"}
    numbers = {index: now for now, index in enumerate(remains.blocks)}
    for block in before.anatomy.blocks:
        index = block.index
        kept = remains.blocks.get(index, Kept((), (), ()))
        yield BlockCut(
            index, numbers.get(index), len(kept.heads), len(kept.kv_heads), len(kept.channels),
            choice.influence[index] if choice.influence else None, choice.kl.get(index),
            errors.get(index),
        )  # fmt: skip


def _renamed(
    before: Weights, student: Weights, remains: Remains, result: LinearResult
) -> LinearResult:
    """A record of a linear by the name that it has in the student."""
    block = result.block or 0
    now = list(remains.blocks).index(block)
    old, new = (w.anatomy.blocks[i].prefix for w, i in ((before, block), (student, now)))
    return dataclasses.replace(result, name=new + result.name.removeprefix(old), block=now)


def _blocks(student: Student, spec: Restructure, context: Context, keep: int) -> depth.Choice:
    """The blocks that stay; chosen once in a run."""
    blocks = len(student.anatomy.blocks)
    if keep == blocks:
        return depth.Choice(tuple(range(blocks)), (), {})
    unit = student.unit("blocks")
    if (noted := context.noted(unit)) is not None:
        costs = {int(index): cost for index, cost in noted["kl"].items()}
        return depth.Choice(tuple(noted["blocks"]), tuple(noted["influence"]), costs)
    choice = depth.choose(student, context, keep, measured=spec.importance != "activation")
    context.note(unit, dataclasses.asdict(choice))
    return choice


def cut_blocks(
    student: Student, spec: Restructure, context: Context, after: Shape, blocks: Sequence[int]
) -> tuple[Remains, list[LinearResult]]:
    """Walk a student, cutting, repairing and committing each of its blocks in the shape it had.

    Args:
        student: read block by block.
        spec: how to choose, and how to repair.
        context: windows, device, scratch, journal.
        after: the shape that it is to have.
        blocks: those that stay, ascending.

    Returns:
        What is left, by numbers in the model before, and a record of each linear that was fitted.
    """
    walk = _Walk(student, spec, context, after)
    kept: dict[int, Kept] = {}
    results: list[LinearResult] = []
    for index, following in pairwise([-1, *blocks, walk.before.blocks]):
        if index >= 0:
            kept[index], found = walk.keep(index, following - index - 1)
            results += found
        for gone in range(index + 1, following):
            walk.remove(gone)
    return Remains(kept), results


@dataclass
class _Walk:
    """A student on its way, the teacher beside it where something is repaired."""

    student: Student
    spec: Restructure
    context: Context
    after: Shape
    ours: Stream = field(init=False)
    theirs: Stream = field(init=False)

    def __post_init__(self) -> None:
        self.ours = Stream(self.student, self.context)
        self.theirs = Stream(self.student.base, self.context)

    @cached_property
    def before(self) -> Shape:
        """The shape that the student has."""
        return shape_of(self.student.config, self.student.anatomy)

    def remove(self, index: int) -> None:
        """Let a block add nothing to the stream."""
        if self.student.finished(index) is None:
            block, stored = self.student.anatomy.blocks[index], self.student.block(index)
            writing = [linear.name for linear in block.linears if linear.role in ("o", "down")]
            names = [f"{name}.{kind}" for name in writing for kind in ("weight", "bias")]
            silent = {name: torch.zeros_like(stored[name]) for name in names if name in stored}
            self.student.commit(index, {}, [], silent)
        self.context.tell("restructure", index + 1, self.before.blocks, "removed")

    def keep(self, index: int, missing: int) -> tuple[Kept, list[LinearResult]]:
        """Cut and repair one block, behind which so many are missing."""
        unit = self.student.unit(f"kept-{index:05d}")
        found, noted = self.student.finished(index), self.context.noted(unit)
        if found is not None and noted is not None:
            names = [one.name for one in dataclasses.fields(Kept)]
            kept = Kept(*(tuple(noted[name]) for name in names))
        else:
            kept, found = self._cut(self.student.anatomy.blocks[index], missing, unit)
        self.context.tell("restructure", index + 1, self.before.blocks)
        return kept, found

    def _cut(self, block: Block, missing: int, unit: str) -> tuple[Kept, list[LinearResult]]:
        walk, index, room = self.ours.walk, block.index, self.context.room
        parts, stored = self.ours.before(index), self.student.block(index)
        with (
            walk.filled(index, stored) as module,
            self._beside(block, parts, missing) as teacher,
        ):
            forwards = Forwards(walk, block, module, parts, room)
            here = Cutting(
                block, module, stored, forwards, parts[0].shape[1], self.spec, self.before,
                self.after, teacher,
            )  # fmt: skip
            kept = here.cut()
        check(block, parts)
        give_back_memory()
        if self.context.noted(unit) is None:
            self.context.note(unit, dataclasses.asdict(kept))
        self.student.commit(index, {}, here.results, here.changed)
        self.ours.passed(index)
        return kept, here.results

    @contextmanager
    def _beside(
        self, block: Block, parts: Sequence[Tensor], missing: int
    ) -> Iterator[Beside | None]:
        if not self.spec.repair:
            yield None
            return
        stream, index, room = self.theirs, block.index, self.context.room
        theirs, stored = stream.before(index), self.student.base.block(index)
        plainly = adds_plainly(self.student.config)
        with stream.walk.filled(index, stored) as module:
            forwards = Forwards(stream.walk, block, module, theirs, room)
            behind = shortfall(theirs, parts, room) if plainly else None
            teacher = Beside(stream, block, stored, forwards, theirs, behind, missing)
            yield teacher
            teacher.finish()

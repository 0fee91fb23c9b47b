"""Walk a student, cutting and repairing each block behind those that were cut before it.

The walk keeps the shape that the model had: what goes is zero from then on, so that a block that
was cut computes what it will when the zeros are taken out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from compress.anatomy import Block, adds_plainly
from compress.machine import give_back_memory
from compress.recipe.restructure import Restructure
from compress.results import LinearResult
from compress.shape import Kept, Remains, Shape, shape_of
from compress.stages import width
from compress.stages.context import Context
from compress.stages.drift import shortfall
from compress.stages.repair import Beside, Cutting, Scores, without
from compress.stages.stream import Stream, check
from compress.student import HEAD, Student
from compress.surgery.inputs import Forwards
from compress.surgery.walk import head_of


def cut_blocks(
    student: Student,
    spec: Restructure,
    context: Context,
    after: Shape,
    blocks: Sequence[int],
    scores: Scores,
    hidden: Sequence[int] | None = None,
) -> tuple[Remains, list[LinearResult]]:
    """Walk a student, cutting, repairing and committing each of its blocks in the shape it had.

    Args:
        student: read block by block.
        spec: how to choose, and how to repair.
        context: windows, device, scratch, journal.
        after: the shape that it is to have.
        blocks: those that stay, ascending.
        scores: of heads and channels, by the linear that reads them, where they decide.
        hidden: channels of the stream that stay; None for all.

    Returns:
        What is left, by numbers in the model before, and a record of each linear that was fitted.
    """
    walk = _Walk(student, spec, context, after, scores, hidden)
    channels = iter(after.each)
    kept: dict[int, Kept] = {}
    results: list[LinearResult] = []
    for index, following in pairwise([-1, *blocks, walk.before.blocks]):
        if index >= 0:
            kept[index], found = walk.keep(index, following - index - 1, next(channels))
            results += found
        for gone in range(index + 1, following):
            walk.remove(gone)
    if hidden is not None and spec.repair and not student.anatomy.tied:
        results += walk.fit_head(hidden)
    return Remains(kept, None if hidden is None else tuple(hidden)), results


@dataclass
class _Walk:
    """A student on its way, the teacher beside it where something is repaired."""

    student: Student
    spec: Restructure
    context: Context
    after: Shape
    scores: Scores
    hidden: Sequence[int] | None

    @cached_property
    def ours(self) -> Stream:
        """The student's activations: what goes of the stream is zero from the beginning."""
        stream = Stream(self.student, self.context)
        if self.hidden is not None:
            gone = without(self.before.hidden, self.hidden)
            for part in stream.before(0):
                part[..., gone] = 0
        return stream

    @cached_property
    def theirs(self) -> Stream:
        """The teacher's."""
        return Stream(self.student.base, self.context)

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

    def keep(self, index: int, missing: int, channels: int) -> tuple[Kept, list[LinearResult]]:
        """Cut one block to so many channels and repair it; so many are missing behind it."""
        unit = self.student.unit(f"kept-{index:05d}")
        found, noted = self.student.finished(index), self.context.noted(unit)
        if found is not None and noted is not None:
            names = [one.name for one in dataclasses.fields(Kept)]
            kept = Kept(*(tuple(noted[name]) for name in names))
        else:
            after = dataclasses.replace(self.after, channels=channels)
            kept, found = self._cut(self.student.anatomy.blocks[index], after, missing, unit)
        self.context.tell("restructure", index + 1, self.before.blocks)
        return kept, found

    def fit_head(self, channels: Sequence[int]) -> list[LinearResult]:
        """Fit a head of its own to what is left of the stream, once all blocks are cut."""
        if (found := self.student.finished(HEAD)) is not None:
            return found
        head = self.student.anatomy.head
        stored, _ = head_of(self.student)
        ours, theirs = self.ours.final(), self.theirs.final()
        weight, result = width.fit_head(head, stored, ours, theirs, channels, self.spec)
        plain = {f"{head.name}.weight": weight.to(stored.dtype)}
        self.student.commit(HEAD, {}, [result], plain)
        return [result]

    def _cut(
        self, block: Block, after: Shape, missing: int, unit: str
    ) -> tuple[Kept, list[LinearResult]]:
        walk, index, room = self.ours.walk, block.index, self.context.room
        parts, stored = self.ours.before(index), self.student.block(index)
        with (
            walk.filled(index, stored) as module,
            self._beside(block, parts, missing) as teacher,
        ):
            forwards = Forwards(walk, block, module, parts, room)
            here = Cutting(
                block, module, stored, forwards, parts[0].shape[1], self.spec, self.before,
                after, teacher, self.scores, self.hidden,
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

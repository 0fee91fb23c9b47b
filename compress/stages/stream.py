"""Activations on their way through a model, one block after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from compress.anatomy import Block
from compress.errors import SolveError
from compress.stages.context import Context
from compress.stages.team import ALONE, Team
from compress.surgery.gradients import prepare
from compress.surgery.walk import Walk, Weights


class Stream:
    """The activations on their way through a model, taken no further than somebody asks.

    Blocks in which nothing is solved, or which an earlier run has finished, are only walked, and
    only when a block behind them, or the head, has yet to be solved.
    """

    def __init__(self, weights: Weights, context: Context) -> None:
        self._weights, self._context = weights, context
        self._reached = 0

    @cached_property
    def walk(self) -> Walk:
        """Built when it is first needed: a run with nothing left to solve never does."""
        return Walk(self._weights, device=self._context.device, dtype=self._context.dtype)

    @cached_property
    def _parts(self) -> Sequence[Tensor]:
        return _activations(self.walk, self._context)

    def before(self, index: int) -> Sequence[Tensor]:
        """The activations that enter block `index`; whoever runs it leaves its outputs there."""
        parts = self._parts
        for behind in range(self._reached, index):
            self._context.tell("catch up", behind, index)
            with self.walk.filled(behind) as module:
                for part in parts:
                    part.copy_(self.walk.call(behind, module, part))
        if self._reached < index:
            self._context.tell("catch up", index, index)
        self._reached = index
        return parts

    def passed(self, index: int) -> None:
        """Take note that the activations have passed a block."""
        self._reached = index + 1

    def final(self) -> Tensor:
        """The normed final hidden states [B, T, D]."""
        parts = self.before(len(self._weights.anatomy.blocks))
        return torch.cat([self.walk.finish(part).cpu() for part in parts])


def _activations(walk: Walk, context: Context) -> Sequence[Tensor]:
    """The inputs of block 0, cut into forwards: views of one tensor."""
    batch, seq_len = context.ids.shape
    # what blocks are handed takes part in gradients, where some are asked for
    prepare(walk, seq_len)
    rows = max(1, context.limits.batch_tokens // seq_len)
    shape = (batch, seq_len, walk.embed(context.ids[:1]).shape[-1])
    hidden = context.room(shape, dtype=context.dtype, device=context.device)
    parts: Sequence[Tensor] = hidden.split(rows)
    for part, ids in zip(parts, context.ids.split(rows), strict=True):
        part.copy_(walk.embed(ids))
    walk.forget_embedding()
    return parts


def check(block: Block, parts: Sequence[Tensor], team: Team = ALONE) -> None:
    """Check what comes out of a block, in all processes that share its windows.

    Raises:
        SolveError: it is not finite.
    """
    broken = not all(torch.isfinite(part).all() for part in parts)
    if team.add_up(torch.tensor(float(broken), device=parts[0].device)):
        team.first(partial(_refuse, block))


def _refuse(block: Block) -> None:
    raise SolveError(
        f"{block.prefix}: its outputs hold NaN or infinite values. Check the teacher's weights, or "
        "run in float32 (teacher.dtype: float32)."
    )

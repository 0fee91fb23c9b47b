"""A walk to the end of a model and back: gradients of what it expects, by all that is in it.

Tokens are drawn from what the model itself expects; see `compress.kernels.fisher`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.kernels import fisher
from compress.machine import give_back_memory
from compress.stages.context import Context
from compress.surgery import gradients
from compress.surgery.inputs import weight_of
from compress.surgery.walk import Walk, Weights, head_of


@dataclass(frozen=True)
class Backward:
    """Windows of tokens on their way to the end of a model and back, one block at a time."""

    weights: Weights
    ids: Tensor  # the windows, [B, T]
    context: Context
    draws: int  # tokens drawn at each position, S
    step: str  # what to call this in progress records

    @cached_property
    def walk(self) -> Walk:
        """Of the model, ready for gradients."""
        walk = Walk(self.weights, device=self.context.device, dtype=self.context.dtype)
        gradients.prepare(walk, self.ids.shape[1])
        return walk

    @cached_property
    def rows(self) -> int:
        """Windows of one forward."""
        return max(1, self.context.limits.batch_tokens // self.ids.shape[1])

    @cached_property
    def head(self) -> fisher.Head:
        """Of the model."""
        weight, bias = head_of(self.weights)
        cap = self.weights.config.get("final_logit_softcapping")
        return fisher.Head(weight.to(self.context.device), bias, cap)

    @cached_property
    def final(self) -> Tensor:
        """Normed final hidden states, [N, D]."""
        parts = [self.walk.finish(part).clone() for part in self._entering[-1].split(self.rows)]
        return torch.cat(parts).flatten(0, 1)

    @cached_property
    def drawn(self) -> fisher.Draws:
        """The tokens drawn behind `final`."""
        generator = torch.Generator(self.context.device).manual_seed(0)
        return fisher.draw(self.final, self.head, draws=self.draws, generator=generator)

    def blocks(self) -> Iterator[Here]:
        """Every block, the last first.

        When the next one is asked for, gradients are carried through it if nobody has done so.
        """
        blocks, entering = self.weights.anatomy.blocks, self._entering
        above = self._behind(entering[-1])
        for index in reversed(range(len(blocks))):
            self.context.tell(self.step, len(blocks) - 1 - index, len(blocks))
            give_back_memory()  # what is done with a block leaves many pieces
            with self.walk.filled(index) as module:
                here = Here(self, blocks[index], module, entering[index].split(self.rows), above)
                yield here
                above = here.carry() if here.below is None else here.below
        self.context.tell(self.step, len(blocks), len(blocks))

    @cached_property
    def _entering(self) -> Tensor:
        """What enters each block, and what leaves the last: [blocks + 1, B, T, D]."""
        blocks = self.weights.anatomy.blocks
        shape = (len(blocks) + 1, *self.ids.shape, self.weights.anatomy.hidden_size)
        entering = self.context.room(shape, dtype=self.context.dtype, device=self.context.device)
        for part, ids in zip(entering[0].split(self.rows), self.ids.split(self.rows), strict=True):
            part.copy_(self.walk.embed(ids))
        for block in blocks:
            before, after = entering[block.index], entering[block.index + 1]
            with self.walk.filled(block.index) as module:
                for x, y in zip(before.split(self.rows), after.split(self.rows), strict=True):
                    y.copy_(self.walk.call(block.index, module, x))
        return entering

    def _behind(self, leaving: Tensor) -> Tensor:
        """Gradients by what leaves the last block, [S, B, T, D]."""
        above = self.drawn.gradient.view(-1, *leaving.shape)
        columns = zip(leaving.split(self.rows), above.split(self.rows, 1), strict=True)
        return torch.cat([gradients.through_norm(self.walk, x, g) for x, g in columns], 1)


@dataclass
class Here:
    """One filled block on the way back."""

    back: Backward
    block: Block
    module: nn.Module
    parts: Sequence[Tensor]  # what enters it
    above: Tensor  # [S, B, T, D], gradients by what leaves it
    below: Tensor | None = None  # by what enters it, once they are carried

    def weight(self, linear: Linear) -> Tensor:
        """Of one of its linears, [O, I], in the dtype of the walk."""
        return weight_of(self.module, self.block, linear)

    def carry(self, seen: Callable[[gradients.Slopes], None] = lambda _: None) -> Tensor:
        """Carry gradients through the block, a few windows at a time; `seen` looks at each part."""
        below = []
        for part, grad in zip(self.parts, self.above.split(self.back.rows, 1), strict=True):
            slopes = gradients.through_block(self.back.walk, self.block, self.module, part, grad)
            seen(slopes)
            below.append(slopes.hidden)
        self.below = torch.cat(below, 1)
        return self.below

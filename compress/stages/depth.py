"""Choose the blocks that a model can do without.

By measured KL: the block goes without which the model still says most of what it said, then the
next of what is left. After the first, only the few that cost least the last time are tried again.
By block influence: those go that turn the residual stream least, one minus the cosine of what
enters and what leaves.

Source: Men et al. 2024 (ShortGPT), arXiv:2403.03853; Kim et al. 2024 (Shortened LLaMA),
arXiv:2402.02834.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor
from torch.nn.functional import cosine_similarity

from compress.kernels.divergence import kl
from compress.stages.context import Context
from compress.surgery.walk import Walk, Weights, head_of, logits

_WINDOWS, _TOKENS = 32, 128  # on which blocks are left out
_EVERY = 4  # tokens of which one is asked what comes next
_TRIED_AGAIN = 5


@dataclass(frozen=True)
class Order:
    """In which order blocks go, and what was found of each."""

    blocks: int  # there are so many
    gone: tuple[int, ...] = ()
    influence: tuple[float, ...] = ()  # one minus the mean cosine, block by block
    kl: tuple[float, ...] = ()  # nats a token, as each of `gone` went, where it was measured

    def left(self, keep: int) -> tuple[int, ...]:
        """The blocks that stay when so many do, ascending."""
        gone = self.gone[: self.blocks - keep]
        return tuple(index for index in range(self.blocks) if index not in gone)


def order(weights: Weights, context: Context, keep: int, *, measured: bool) -> Order:
    """Say which blocks go first, by KL when they are left out or by block influence.

    Args:
        weights: the model.
        context: windows, of which few are read; device.
        keep: blocks that stay when all that are asked for have gone.
        measured: by KL.
    """
    reader = _Reader(weights, context)
    entering = reader.entering(range(len(weights.anatomy.blocks)))
    influence = tuple(_turned(*pair) for pair in pairwise(entering))
    blocks = list(range(len(influence)))
    if not measured:
        going = sorted(blocks, key=influence.__getitem__)[: len(blocks) - keep]
        return Order(len(blocks), tuple(going), influence)
    said, costs, tried = reader.said(entering[-1]), dict[int, float](), list(blocks)
    gone = dict[int, float]()
    while len(blocks) > keep:
        context.tell("choose blocks", len(gone), len(influence) - keep)
        for index in tried:
            costs[index] = reader.without(index, blocks, entering, said)
        index = min(costs, key=costs.__getitem__)
        gone[index] = costs.pop(index)
        place = blocks.index(index)
        blocks.remove(index)
        entering[place:] = reader.entering(blocks[place:], entering[place])
        tried = sorted(costs, key=costs.__getitem__)[:_TRIED_AGAIN]
    return Order(len(influence), tuple(gone), influence, tuple(gone.values()))


class _Reader:
    """A model that reads a few windows with some of its blocks."""

    def __init__(self, weights: Weights, context: Context) -> None:
        self._weights = weights
        self._walk = Walk(weights, device=context.device, dtype=context.dtype)
        self._embedded = self._walk.embed(context.ids[:_WINDOWS, :_TOKENS])
        weight, bias = head_of(weights)
        self._head = weight.to(context.device, context.dtype), bias

    def entering(self, blocks: Sequence[int], hidden: Tensor | None = None) -> list[Tensor]:
        """What enters each of the blocks, and what leaves the last: [B, T, D] each."""
        found = [self._embedded if hidden is None else hidden]
        for index in blocks:
            with self._walk.filled(index) as module:
                found.append(self._walk.call(index, module, found[-1]))
        return found

    def said(self, leaving: Tensor) -> Tensor:
        """Logits [n, V] float32 of some tokens."""
        hidden = self._walk.finish(leaving).flatten(0, 1)[_EVERY - 1 :: _EVERY]
        return logits(self._weights, hidden, head=self._head)

    def without(
        self, index: int, blocks: Sequence[int], entering: Sequence[Tensor], said: Tensor
    ) -> float:
        """Mean KL when one more block is left out of those that stay."""
        place = blocks.index(index)
        leaving = self.entering(blocks[place + 1 :], entering[place])[-1]
        return float(kl(said, self.said(leaving)).mean())


def _turned(entering: Tensor, leaving: Tensor) -> float:
    return 1 - float(cosine_similarity(entering.float(), leaving.float(), dim=-1).mean())

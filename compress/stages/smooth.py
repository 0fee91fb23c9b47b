"""Fold factors of inputs into what makes the inputs of a block's linears.

    q, k, v   the norm before them         gate, up   the norm before them
    o         the rows of v                down       the rows of up, where down reads act(gate)·up

Factors that cannot be folded are left out: inputs of GPT-2's c_proj come out of a GELU. All are
powers of two, so the block computes, bit for bit, what it did.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compress.anatomy import Block, Linear, gated, kv_heads, norms_before
from compress.families import Role
from compress.kernels.smooth import factors, searched_factors
from compress.stages.inputs import Seen


@dataclass(frozen=True)
class Fold:
    """Inputs that linears share, and what makes them, channel by channel."""

    readers: tuple[Linear, ...]  # all linears of a block that are given them
    maker: str  # a norm or a linear
    heads: tuple[int, int] | None = None  # of values, and heads of inputs that each of them makes

    def spread(self, by: Tensor) -> Tensor:
        """Factors of what is made, [C], as those of the inputs, [I]: each head as often as read."""
        if self.heads is None:
            return by
        heads, copies = self.heads
        return by.view(heads, 1, -1).expand(-1, copies, -1).flatten()

    def gathered(self, inputs: Tensor) -> Tensor:
        """The largest that each channel, [C], shows in the inputs it makes, [I]."""
        if self.heads is None:
            return inputs
        return inputs.view(*self.heads, -1).amax(1).flatten()

    def apply(self, tensors: dict[str, Tensor], by: Tensor) -> None:
        """Divide what is made by factors [C]: rows of the maker, undone in the readers' columns.

        Tensors that are not among `tensors` [by full name, as stored] are somebody else's to turn.
        """
        for name in (f"{self.maker}.weight", f"{self.maker}.bias"):
            if name in tensors:
                rows = by.to(tensors[name].dtype)
                rows = rows[:, None] if tensors[name].dim() == 2 else rows
                tensors[name] = tensors[name] / rows
        columns = self.spread(by)
        for reader in self.readers:
            if (name := f"{reader.name}.weight") in tensors:
                side = columns.to(tensors[name].dtype)
                tensors[name] = tensors[name] * (side[:, None] if reader.transposed else side)


def folds(
    block: Block, config: Mapping[str, Any], wanted: Container[str], coded: Container[str] = ()
) -> Iterator[Fold]:
    """Where factors can be folded in a block, in the order in which data flows.

    Args:
        block: which.
        config: the model's ``config.json``.
        wanted: names of the linears that are to be rounded: others need no factors.
        coded: names of those that are codes already: nothing of theirs can change.
    """
    roles: dict[Role, Linear] = {linear.role: linear for linear in block.linears}
    makers = norms_before(config, block)
    if "v" in roles:
        makers["attention_output"] = roles["v"].name
    if gated(config):
        makers["mlp_hidden"] = roles["up"].name
    for shared in dict.fromkeys(linear.shares for linear in block.linears):
        readers = tuple(linear for linear in block.linears if linear.shares == shared)
        names = [linear.name for linear in readers]
        if shared not in makers or not any(name in wanted for name in names):
            continue
        if not any(name in coded for name in (*names, makers[shared])):
            heads = _heads(roles, config) if shared == "attention_output" else None
            yield Fold(readers, makers[shared], heads)


@dataclass(frozen=True)
class Smoothed:
    """A block that computes what it did before, with other tensors."""

    tensors: dict[str, Tensor]  # those that changed, by full name, in the dtype they are stored in
    seen: dict[str, Seen]  # what its linears are fed now


def smooth(
    found: Sequence[Fold],
    stored: Mapping[str, Tensor],
    seen: Mapping[str, Seen],
    strength: float | Literal["search"],
) -> Smoothed:
    """Smooth the inputs of a block's linears by SmoothQuant's factors.

    Args:
        found: where they can be folded.
        stored: the dense tensors of the block by full name.
        seen: what its linears were fed.
        strength: how much is moved, or how it is found; see `kernels.smooth`.
    """
    tensors, fed = dict(stored), dict(seen)
    for fold in found:
        shared = fold.readers[0].shares
        by = _factors(fold, tensors, fed[shared], strength)
        fold.apply(tensors, by)
        fed[shared] = fed[shared].divided(fold.spread(by))
    changed = {name: t for name, t in tensors.items() if t is not stored[name]}
    return Smoothed(changed, fed)


def _factors(
    fold: Fold, tensors: Mapping[str, Tensor], seen: Seen, strength: float | Literal["search"]
) -> Tensor:
    """By what to divide what is made, [C]."""
    stored = [(x, tensors[f"{x.name}.weight"]) for x in fold.readers]
    read = [x.turned(weight) for x, weight in stored]
    columns = torch.stack([weight.abs().amax(0).float() for weight in read]).amax(0)
    largest = fold.gathered(seen.largest), fold.gathered(columns)
    if strength != "search":
        return factors(*largest, strength)
    stacked = torch.cat([weight.to(seen.rows) for weight in read])
    return searched_factors(seen.rows, stacked, factors(*largest, 0.5), fold.spread)


def _heads(roles: Mapping[Role, Linear], config: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of values, and how many heads of what o reads each of them makes."""
    return kv_heads(config), roles["o"].in_features // roles["v"].out_features

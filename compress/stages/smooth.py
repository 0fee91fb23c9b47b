"""Fold SmoothQuant's factors into what makes the inputs of a block's linears.

    q, k, v   the norm before them         gate, up   the norm before them
    o         the rows of v                down       the rows of up, where down reads act(gate)·up

A factor that cannot be folded is left out: inputs of GPT-2's c_proj come out of a GELU.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from compress.anatomy import Block, Linear, Role, gated, kv_heads, norms_before
from compress.kernels.smooth import factors, searched_factors
from compress.stages.inputs import Seen


@dataclass(frozen=True)
class Smoothed:
    """A block that computes what it did before, with other tensors."""

    tensors: dict[str, Tensor]  # those that changed, by full name, in the dtype they are stored in
    seen: dict[str, Seen]  # what its linears are fed now


def smooth(
    block: Block,
    config: Mapping[str, Any],
    stored: Mapping[str, Tensor],
    seen: Mapping[str, Seen],
    strength: float | Literal["search"],
    wanted: Container[str],
) -> Smoothed:
    """Smooth the inputs of a block's linears where that can be done.

    Args:
        block: which.
        config: the model's ``config.json``.
        stored: its dense tensors by full name.
        seen: what its linears were fed.
        strength: how much is moved, or how it is found; see `kernels.smooth`.
        wanted: names of the linears whose inputs are to be rounded.
    """
    fold = _Folding(block, dict(stored), dict(seen), strength)
    roles: dict[Role, Linear] = {linear.role: linear for linear in block.linears}
    makers = norms_before(config, block)
    if "v" in roles:
        makers["attention_output"] = roles["v"].name
    if gated(config):
        makers["mlp_hidden"] = roles["up"].name
    rounding = {linear.shares for linear in block.linears if linear.name in wanted}
    for shared, maker in makers.items():
        if shared in rounding:
            heads = _heads(roles, config) if shared == "attention_output" else None
            fold.into(shared, maker, heads)
    changed = {name: t for name, t in fold.tensors.items() if t is not stored[name]}
    return Smoothed(changed, fold.seen)


@dataclass
class _Folding:
    """The tensors of a block on their way; factors are folded one after another."""

    block: Block
    tensors: dict[str, Tensor]
    seen: dict[str, Seen]
    strength: float | Literal["search"]

    def into(self, shared: str, maker: str, heads: tuple[int, int] | None) -> None:
        """Divide inputs by factors: multiply their readers' columns, divide the rows of a maker.

        `heads`: of keys and values, and how many heads of the inputs each of them makes.
        """
        readers = [linear for linear in self.block.linears if linear.shares == shared]
        weights = torch.stack([_columns(self._weight(x)).float() for x in readers]).amax(0)
        inputs = self.seen[shared].largest
        if heads is not None:
            inputs, weights = (_over_copies(t, *heads) for t in (inputs, weights))
        start = 0.5 if self.strength == "search" else self.strength
        by = factors(inputs, weights, start)
        if self.strength == "search":
            rows = self.seen[shared].rows
            stacked = torch.cat([self._weight(x).to(rows) for x in readers])
            spreading = (lambda t: t) if heads is None else partial(_copied, *heads)
            by = searched_factors(rows, stacked, by, spreading)
        for name in (f"{maker}.weight", f"{maker}.bias"):
            if name in self.tensors:
                rows = by.to(self.tensors[name].dtype)
                self.tensors[name] = self.tensors[name] / _beside(rows, self.tensors[name])
        spread = by if heads is None else _copied(*heads, by)
        for reader in readers:
            weight = self._weight(reader) * spread.to(self._weight(reader).dtype)
            self.tensors[f"{reader.name}.weight"] = weight.T if reader.transposed else weight
        self.seen[shared] = self.seen[shared].divided(spread)

    def _weight(self, linear: Linear) -> Tensor:
        """The weight [O, I] of a linear."""
        stored = self.tensors[f"{linear.name}.weight"]
        return stored.T if linear.transposed else stored


def _columns(weight: Tensor) -> Tensor:
    """The largest magnitude in each column [I] of a weight [O, I]."""
    return weight.abs().amax(0)


def _beside(rows: Tensor, tensor: Tensor) -> Tensor:
    """Factors of rows [O], to divide a weight [O, I], or a bias or norm [O]."""
    return rows[:, None] if tensor.dim() == 2 else rows


def _heads(roles: Mapping[Role, Linear], config: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of values, and how many heads of what o reads each of them makes."""
    return kv_heads(config), roles["o"].in_features // roles["v"].out_features


def _over_copies(channels: Tensor, heads: int, copies: int) -> Tensor:
    """The largest over all copies of a head: [KV · copies · D] becomes [KV · D]."""
    return channels.view(heads, copies, -1).amax(1).flatten()


def _copied(heads: int, copies: int, channels: Tensor) -> Tensor:
    """Each head as often as it is read: [KV · D] becomes [KV · copies · D]."""
    return channels.view(heads, 1, -1).expand(-1, copies, -1).flatten()

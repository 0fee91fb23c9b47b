"""The parts of a model, read from an artifact in the dtype in which they run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from compress.anatomy import Block
from compress.artifact.held import Coded
from compress.runtime.linear import Linear, Matrix, linear
from compress.runtime.settings import Settings


class Stored(Coded, Protocol):
    """What is read of an artifact."""

    def tensor(self, name: str) -> Tensor:
        """A tensor by its full name."""


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm. `gain` is the weight times √D, float32; `floor` is √(eps·D)."""

    gain: Tensor
    floor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize the last dimension, in three passes; torch's own makes eight on a CPU."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.div(x, torch.hypot(length, self.floor)).mul_(self.gain).to(x.dtype)


@dataclass(frozen=True)
class Centred:
    """Layer norm: the mean is subtracted first, a bias is added last."""

    weight: Tensor  # float32
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        made = layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)
        return made.to(x.dtype)


@dataclass(frozen=True)
class BlockWeights:
    """One decoder block."""

    attention_norm: Norm | Centred
    qkv: tuple[Linear, ...]
    qk_norm: Norm | None  # Qwen3 and Gemma 3; gain [H + KV, D], one row a head
    o: Linear
    attention_sum: Norm | Centred | None  # of what attention gives
    mlp_norm: Norm | Centred
    gate_up: tuple[Linear, ...]  # or up alone, where there is no gate
    down: Linear
    mlp_sum: Norm | Centred | None


@dataclass(frozen=True)
class Reader:
    """Reads the parts of a model."""

    stored: Stored
    settings: Settings
    dtype: torch.dtype  # of activations
    device: str
    linears: dict[str, Linear] = field(default_factory=dict)  # all that were read, by name

    def block(self, block: Block) -> BlockWeights:
        """All of a block."""
        by_role: dict[str, Linear] = {
            one.role: self.linear(one.name, transposed=one.transposed) for one in block.linears
        }
        ways = self.settings.ways
        norms = [self.norm(f"{block.prefix}.{name}") for name in ways.norms]
        sums = [self.norm(f"{block.prefix}.{name}") for name in ways.sums or ()]
        return BlockWeights(
            attention_norm=norms[0],
            qkv=tuple(by_role[role] for role in ("q", "k", "v", "qkv") if role in by_role),
            qk_norm=self._qk_norm(block.attention),
            o=by_role["o"],
            attention_sum=sums[0] if sums else None,
            mlp_norm=norms[1],
            gate_up=tuple(by_role[role] for role in ("gate", "up") if role in by_role),
            down=by_role["down"],
            mlp_sum=sums[1] if sums else None,
        )

    def linear(self, name: str, *, transposed: bool = False) -> Linear:
        """A linear, or an embedding."""
        matrix: Matrix | None = self.stored.rounded(name)
        if matrix is None:
            weight = self.stored.tensor(name + ".weight")
            matrix = weight.T if transposed else weight
        biased = name + ".bias" in self.stored.anatomy.tensors
        bias = self.stored.tensor(name + ".bias") if biased else None
        self.linears[name] = linear(matrix, bias, self.dtype, self.device)
        return self.linears[name]

    def norm(self, name: str) -> Norm | Centred:
        """A norm of hidden states."""
        weight = self._floats(name + ".weight")
        if self.settings.ways.centred:
            return Centred(weight, self._floats(name + ".bias"), self.settings.eps)
        return self._gain(weight)

    def positions(self) -> Tensor | None:
        """A row for each position, from the first that a token can have; None for none."""
        ways = self.settings.ways
        if ways.positions is None:
            return None
        rows = self.stored.tensor(f"{ways.positions}.weight")[ways.first_position :]
        return rows.to(self.device, self.dtype)

    def _qk_norm(self, prefix: str) -> Norm | None:
        if f"{prefix}.q_norm.weight" not in self.stored.anatomy.tensors:
            return None
        query, key = (self._floats(f"{prefix}.{which}_norm.weight") for which in "qk")
        heads, kv_heads = self.settings.heads, self.settings.kv_heads
        return self._gain(torch.cat([query.expand(heads, -1), key.expand(kv_heads, -1)]))

    def _gain(self, weight: Tensor) -> Norm:
        width = weight.shape[-1]
        gain = weight + 1 if self.settings.ways.one_more else weight
        floor = torch.tensor((self.settings.eps * width) ** 0.5, device=gain.device)
        return Norm(gain * width**0.5, floor)

    def _floats(self, name: str) -> Tensor:
        return self.stored.tensor(name).to(self.device, torch.float32)

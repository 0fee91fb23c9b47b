"""The parts of a model, read from an artifact in the dtype in which they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from compress.anatomy import Anatomy, Block
from compress.kernels.grid import Rounded
from compress.kernels.kv import KVScales
from compress.runtime.linear import Linear, Matrix, linear
from compress.runtime.settings import Settings


class Stored(Protocol):
    """What is read of an artifact."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``."""

    @property
    def anatomy(self) -> Anatomy:
        """The picture of the dense model."""

    def rounded(self, name: str) -> Rounded | None:
        """A quantized matrix by its module name, None when it is stored dense."""

    def tensor(self, name: str) -> Tensor:
        """A tensor by its full name."""

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches; None: it does not."""


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
        return layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(
            x.dtype
        )


@dataclass(frozen=True)
class Fan:
    """Linears that read the same input."""

    names: tuple[str, ...]
    linears: tuple[Linear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [N, I] to all outputs side by side."""
        return torch.cat([one(x) for one in self.linears], dim=-1)


@dataclass(frozen=True)
class BlockWeights:
    """One decoder block."""

    attention_norm: Norm | Centred
    qkv: Fan
    qk_norm: Norm | None  # Qwen3 and Gemma 3; gain [H + KV, D], one row a head
    o: Fan
    attention_sum: Norm | Centred | None  # of what attention gives
    mlp_norm: Norm | Centred
    gate_up: Fan  # or up alone, where there is no gate
    down: Fan
    mlp_sum: Norm | Centred | None


class Reader:
    """Reads the parts of a model."""

    def __init__(
        self, stored: Stored, settings: Settings, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        """Read from `stored` for activations of `dtype` on a device."""
        self._stored, self._settings, self._dtype = stored, settings, dtype
        self._device = device
        self._linears = {one.name: one for one in stored.anatomy.linears}

    def block(self, block: Block) -> BlockWeights:
        """All of a block."""
        by_role: dict[str, str] = {one.role: one.name for one in block.linears}
        before, behind = self._settings.ways.norms, self._settings.ways.sums

        def fan(*roles: str) -> Fan:
            return self.fan([by_role[role] for role in roles if role in by_role])

        def norm(names: tuple[str, str], which: int) -> Norm | Centred:
            return self.norm(f"{block.prefix}.{names[which]}")

        return BlockWeights(
            attention_norm=norm(before, 0),
            qkv=fan("q", "k", "v", "qkv"),
            qk_norm=self._qk_norm(block.attention),
            o=fan("o"),
            attention_sum=norm(behind, 0) if behind else None,
            mlp_norm=norm(before, 1),
            gate_up=fan("gate", "up"),
            down=fan("down"),
            mlp_sum=norm(behind, 1) if behind else None,
        )

    def fan(self, names: Sequence[str]) -> Fan:
        """Linears that read the same."""
        linears = tuple(
            linear(self._matrix(name), self._bias(name), self._dtype, self._device)
            for name in names
        )
        return Fan(tuple(names), linears)

    def norm(self, name: str) -> Norm | Centred:
        """A norm of hidden states."""
        weight = self._floats(name + ".weight")
        if self._settings.ways.centred:
            return Centred(weight, self._floats(name + ".bias"), self._settings.eps)
        return self._gain(weight)

    def positions(self) -> Tensor | None:
        """A row for each position, from the first that a token can have; None for none."""
        ways = self._settings.ways
        if ways.positions is None:
            return None
        rows = self._stored.tensor(f"{ways.positions}.weight")[ways.first_position :]
        return rows.to(self._device, self._dtype)

    def _qk_norm(self, prefix: str) -> Norm | None:
        if f"{prefix}.q_norm.weight" not in self._stored.anatomy.tensors:
            return None
        query, key = (self._floats(f"{prefix}.{which}_norm.weight") for which in "qk")
        heads, kv_heads = self._settings.heads, self._settings.kv_heads
        return self._gain(torch.cat([query.expand(heads, -1), key.expand(kv_heads, -1)]))

    def _gain(self, weight: Tensor) -> Norm:
        width = weight.shape[-1]
        gain = weight + 1 if self._settings.ways.one_more else weight
        floor = torch.tensor((self._settings.eps * width) ** 0.5, device=gain.device)
        return Norm(gain * width**0.5, floor)

    def _floats(self, name: str) -> Tensor:
        return self._stored.tensor(name).to(self._device, torch.float32)

    def _matrix(self, name: str) -> Matrix:
        rounded = self._stored.rounded(name)
        if rounded is not None:
            return rounded
        weight = self._stored.tensor(name + ".weight")
        return self._linears[name].turned(weight) if name in self._linears else weight

    def _bias(self, name: str) -> Tensor | None:
        known = name + ".bias" in self._stored.anatomy.tensors
        return self._stored.tensor(name + ".bias") if known else None

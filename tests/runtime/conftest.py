"""A model held in memory that reads like an artifact, and rounding to the nearest code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.anatomy import Anatomy, read
from compress.kernels.grid import Rounded, storable
from compress.kernels.kv import KVScales
from compress.storage import Checkpoint


def round_to_nearest(weight: Tensor, *, bits: int, group_size: int, sym: bool = True) -> Rounded:
    """Round to the nearest code; group_size -1 is one group a row."""
    rows, columns = weight.shape
    group_size = columns if group_size == -1 else group_size
    groups, top = weight.float().view(rows, -1, group_size), 2**bits - 1
    if sym:
        scale = storable(2 * groups.abs().amax(-1) / top)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = storable((high - low) / top)
        zero = (-low / scale).round().clamp(0, top)
    codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, top)
    return Rounded(codes.byte().view(rows, columns), scale, zero.byte(), bits, group_size, sym)


@pytest.fixture(scope="session")
def nearest() -> Callable[..., Rounded]:
    """`nearest(weight, bits=4, group_size=32)`."""
    return round_to_nearest


@dataclass
class Memory:
    """A dense folder of which some matrices are replaced by codes."""

    config: Mapping[str, Any]
    anatomy: Anatomy
    tensors: dict[str, Tensor]
    codes: dict[str, Rounded] = field(default_factory=dict)
    format: str = "memory"
    caches: Callable[[int], KVScales | None] = lambda index: None

    def kv(self, index: int) -> KVScales | None:
        return self.caches(index)

    def rounded(self, name: str) -> Rounded | None:
        return self.codes.get(name)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def turned(self, name: str, weight: Tensor) -> Tensor:
        """A weight as it is stored, given as [O, I]; or as [O, I], given as it is stored."""
        linears = {one.name: one for one in self.anatomy.linears}
        return linears[name].turned(weight) if name in linears else weight

    def dense(self) -> dict[str, Tensor]:
        """The state that these codes stand for, as transformers loads it."""
        expanded = {
            f"{name}.weight": self.turned(name, codes.dequantize())
            for name, codes in self.codes.items()
        }
        return {**self.tensors, **expanded}


@pytest.fixture(scope="session")
def memory() -> Callable[..., Memory]:
    """Read a dense folder into memory, its linears and, asked for, its head rounded."""

    def make(folder: Path, *, head: int | None = None, **scheme: Any) -> Memory:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        checkpoint = Checkpoint(folder)
        tensors = checkpoint.read_many(list(checkpoint.tensors))
        anatomy = read(config, checkpoint.shapes())
        made = Memory(config, anatomy, tensors)
        names = {one.name: scheme for one in anatomy.linears} if scheme else {}
        if head is not None:
            top = anatomy.embedding if anatomy.tied else anatomy.head.name
            names[top] = {"bits": head, "group_size": -1 if head == 8 else 32}
        made.codes = {
            name: round_to_nearest(made.turned(name, tensors[name + ".weight"]), **s)
            for name, s in names.items()
        }
        return made

    return make

"""Let neighbouring heads of one block share keys and values; see `kernels.merging`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.anatomy import Linear
from compress.families import Role
from compress.kernels import merging
from compress.kernels.hessian import accumulate, mean, outputs
from compress.shape import Shape


@dataclass(frozen=True)
class Attention:
    """The tensors of one block's attention, and what its heads are given."""

    roles: Mapping[Role, Linear]
    stored: Mapping[str, Tensor]
    given: Sequence[Tensor]  # [N, D] each
    shape: Shape
    normed: bool  # queries and keys are normed behind their linears

    def merged(self, leave: int, *, apart: bool) -> dict[str, Tensor]:
        """Tensors by full name with which so many heads of keys and values are left.

        Each is written in the place of every head that it was made of.

        Args:
            leave: heads of keys and values; divides those that there are.
            apart: keep what the readers miss least, and have them undo it; otherwise the mean.
        """
        each = self.shape.kv_heads // leave
        found: dict[str, list[Tensor]] = {}
        for first in range(0, self.shape.kv_heads, each):
            heads = slice(first, first + each)
            pieces = self._values(heads) if apart else self._means("v", heads)
            aligned = apart and not self.normed
            pieces |= self._keys(heads) if aligned else self._means("k", heads)
            for name, piece in pieces.items():
                found.setdefault(name, []).append(piece)
        reader = f"{self.roles['o'].name}.weight"
        return {name: torch.cat(p, 1 if name == reader else 0) for name, p in found.items()}

    def _means(self, role: Role, heads: slice) -> dict[str, Tensor]:
        count = heads.stop - heads.start
        pieces = {}
        for name in self._names(role):
            rows = self._rows(name, heads)
            pieces[name] = _again(merging.mean_of_heads(rows, count), count)
        return pieces

    def _values(self, heads: slice) -> dict[str, Tensor]:
        count, size = heads.stop - heads.start, self.shape.head_dim
        columns = self._columns(heads).view(self.shape.hidden, count, -1, size)
        readers = torch.einsum("ohqi,ohqj->hij", columns, columns)
        down, up = merging.value_merge(self._moments("v", heads), readers, size)
        pieces = {
            name: _again(down @ self._rows(name, heads).float(), count) for name in self._names("v")
        }
        read = torch.einsum("ohqi,hij->ohqj", columns, up.view(count, size, size))
        return pieces | {f"{self.roles['o'].name}.weight": read.flatten(1)}

    def _keys(self, heads: slice) -> dict[str, Tensor]:
        count, size = heads.stop - heads.start, self.shape.head_dim
        asking = slice(heads.start * self.shape.group, heads.stop * self.shape.group)
        squares = self._moments("q", asking).diagonal()
        asked = squares.view(count, self.shape.group, 2, size // 2).sum((1, 2))
        merge, undo = merging.key_merge(self._moments("k", heads), asked, size)
        pieces = {
            name: _again(merging.merged_keys(self._rows(name, heads), merge), count)
            for name in self._names("k")
        }
        queries = {n: merging.asking(self._rows(n, asking), undo) for n in self._names("q")}
        return pieces | queries

    def _moments(self, role: Role, heads: slice) -> Tensor:
        """E[y yᵀ] of what the heads of a linear give."""
        name = self.roles[role].name
        weight, bias = self._rows(f"{name}.weight", heads), self.stored.get(f"{name}.bias")
        total = torch.zeros(len(weight), len(weight), device=weight.device)
        for x in self.given:
            y = outputs(x, weight.to(x.dtype))
            accumulate(total, y if bias is None else y + self._rows(f"{name}.bias", heads))
        return mean(total, sum(map(len, self.given)))

    def _names(self, role: Role) -> list[str]:
        """Weight and bias of a linear, where it has one."""
        name = self.roles[role].name
        return [n for n in (f"{name}.weight", f"{name}.bias") if n in self.stored]

    def _rows(self, name: str, heads: slice) -> Tensor:
        size = self.shape.head_dim
        stored = self.stored[name][heads.start * size : heads.stop * size]
        return stored.to(self.given[0].device)

    def _columns(self, heads: slice) -> Tensor:
        """What o reads of heads of values: [O, heads · group · D]."""
        size = self.shape.group * self.shape.head_dim
        weight = self.stored[f"{self.roles['o'].name}.weight"]
        stored = weight[:, heads.start * size : heads.stop * size]
        return stored.to(self.given[0].device).float()


def _again(rows: Tensor, count: int) -> Tensor:
    """Rows in the place of each of so many heads."""
    return rows.repeat(count, *[1] * (rows.dim() - 1))

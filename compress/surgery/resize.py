"""A model of which a part is left, as weights of their own: nothing is copied before it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compress import anatomy as anatomies
from compress.anatomy import Anatomy
from compress.kernels.activations import Rounds
from compress.kernels.kv import KVScales
from compress.shape import (
    Remains,
    Shape,
    block_axes,
    cut_config,
    cut_tensors,
    scales_stream,
    shape_of,
    stream_axes,
)
from compress.surgery.walk import Weights


@dataclass(frozen=True)
class Cut:
    """What is left of other weights; it says what they would with zeros in place of the rest."""

    weights: Weights
    remains: Remains

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``."""
        return cut_config(self.weights.config, self._before, self.remains)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The picture of what is left."""
        left = cut_tensors(self.weights.anatomy, self._before, self.remains)
        return anatomies.read(self.config, {name: shape for name, (_, shape) in left.items()})

    @cached_property
    def _before(self) -> Shape:
        return shape_of(self.weights.config, self.weights.anatomy)

    @cached_property
    def _blocks(self) -> tuple[int, ...]:
        return tuple(self.remains.blocks)

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block by their stored names."""
        before = self._blocks[index]
        block, kept = self.weights.anatomy.blocks[before], self.remains.blocks[before]
        prefix, found = self.anatomy.blocks[index].prefix, {}
        for name, tensor in self.weights.block(before).items():
            chosen = block_axes(block, tensor.shape, self._before, name, kept, self.remains.hidden)
            found[prefix + name.removeprefix(block.prefix)] = self._scaled(
                name, _picked(tensor, chosen)
            )
        return found

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors that belong to no block by their stored names."""
        found = {}
        for name, tensor in self.weights.outside().items():
            chosen = stream_axes(tensor.shape, self._before, name, self.remains.hidden)
            found[name] = self._scaled(name, _picked(tensor, chosen))
        return found

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        """The linears of one block whose inputs are rounded: none."""
        return {}

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches: it does not."""
        return None

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        """A norm's weight, which a mean over fewer channels leaves that much too large.

        x / √(mean over all) = x / √(mean over those that are left) · √(all / left): the others
        were zero.
        """
        left = self.remains.hidden
        if left is None or not scales_stream(name):
            return tensor
        scaled: Tensor = tensor * (self._before.hidden / len(left)) ** 0.5
        return scaled


def _picked(tensor: Tensor, chosen: Sequence[Sequence[int] | None]) -> Tensor:
    """The places of each axis that are left."""
    for axis, places in enumerate(chosen):
        if places is not None:
            index = torch.tensor(places, dtype=torch.long, device=tensor.device)
            tensor = tensor.index_select(axis, index)
    return tensor

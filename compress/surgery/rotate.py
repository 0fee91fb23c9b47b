"""Turn a model round inside without changing what it says.

With an orthogonal Q, a residual stream h becomes h Q: what writes to it writes W ↦ Qᵀ W, what reads
it reads W ↦ W Q. A norm that divides by the length of h and multiplies by its weight commutes with
Q once that weight is part of the linears behind it. Values are turned head by head by R, which
o_proj turns back. Outliers of single channels are spread over all, and no trace of an earlier grid
is left in the weights.

Source: Ashkboos et al. 2024 (SliceGPT), arXiv:2401.15024; QuaRot, arXiv:2404.00456.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from compress.anatomy import Anatomy, Block, kv_heads, norms_before
from compress.errors import ModelError
from compress.kernels.activations import Rounds
from compress.kernels.kv import KVScales
from compress.surgery.walk import Weights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # norms that subtract no mean, weights as stored


@dataclass(frozen=True)
class Rotated:
    """Weights that say what others say, turned; a tied head comes off its embedding."""

    weights: Weights
    stream: Tensor | None = None  # [D, D] float64, orthogonal: Q
    values: Tensor | None = None  # [head_dim, head_dim] float64, orthogonal: R
    dtype: torch.dtype = torch.float32  # of what is turned

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``; its head is its own."""
        untied = {} if self.stream is None else {"tie_word_embeddings": False}
        return {**self.weights.config, **untied}

    @cached_property
    def anatomy(self) -> Anatomy:
        """The picture of the model; its head is its own."""
        found = self.weights.anatomy
        if self.stream is None or not found.tied:
            return found
        shape = found.tensors[found.embedding + ".weight"]
        tensors = {**found.tensors, found.head.name + ".weight": shape}
        return dataclasses.replace(found, tied=False, tensors=tensors)

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block by their stored names."""
        block, tensors = self.weights.anatomy.blocks[index], self.weights.block(index)
        found = {name: tensor.double() for name, tensor in tensors.items()}
        if self.values is not None:
            _turn_values(block, found, self.values)
        if self.stream is not None:
            _turn_stream(block, found, self.stream, norms_before(self.weights.config, block))
        return {name: self._stored(found[name], tensors[name]) for name in tensors}

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors that belong to no block by their stored names."""
        tensors, picture = self.weights.outside(), self.weights.anatomy
        if self.stream is None:
            return tensors
        embedding, head, norm = (
            f"{name}.weight" for name in (picture.embedding, picture.head.name, picture.final_norm)
        )
        read = tensors[embedding if picture.tied else head].double() * tensors[norm].double()
        turned = {
            embedding: (tensors[embedding].double() @ self.stream).to(self.dtype),
            head: (read @ self.stream).to(self.dtype),
            norm: torch.ones_like(tensors[norm]),
        }
        return {**tensors, **turned}

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        """The linears of one block whose inputs are rounded."""
        return self.weights.inputs(index)

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches."""
        return self.weights.kv(index)

    def _stored(self, turned: Tensor, before: Tensor) -> Tensor:
        return turned.to(self.dtype if turned.dim() > 1 else before.dtype)


def _turn_stream(
    block: Block, found: dict[str, Tensor], q: Tensor, norms: Mapping[str, str]
) -> None:
    """Turn the stream that a block reads and writes, in place; its norms become ones."""
    for linear in block.linears:
        name, bias = linear.name + ".weight", linear.name + ".bias"
        if linear.shares in norms:
            found[name] = found[name] * found[norms[linear.shares] + ".weight"] @ q
        elif linear.role in ("o", "down"):
            found[name] = q.T @ found[name]
            if bias in found:
                found[bias] = found[bias] @ q
    for norm in norms.values():
        found[norm + ".weight"] = torch.ones_like(found[norm + ".weight"])


def _turn_values(block: Block, found: dict[str, Tensor], r: Tensor) -> None:
    """Turn the values of every head of a block, in place, and back in its o_proj."""
    width = len(r)
    for linear in block.linears:
        name, bias = linear.name + ".weight", linear.name + ".bias"
        if linear.role == "v":
            heads = found[name].view(-1, width, linear.in_features)
            found[name] = (r @ heads).view(-1, linear.in_features)
            if bias in found:
                found[bias] = (found[bias].view(-1, width) @ r.T).flatten()
        elif linear.role == "o":
            found[name] = (found[name].view(linear.out_features, -1, width) @ r.T).flatten(1)


def rotated(weights: Weights, *, stream: bool, values: bool, seed: int = 0) -> Rotated:
    """A model turned at random.

    Args:
        weights: of a family whose norms divide by a root mean square and multiply by their weight.
        stream: turn the residual stream; a tied head becomes a matrix of its own.
        values: turn the values of every head, by one rotation.
        seed: of the rotations.

    Raises:
        ModelError: its family's norms do other things.
    """
    config, hidden = weights.config, weights.anatomy.hidden_size
    if str(config.get("model_type")) not in FAMILIES:
        raise ModelError(
            f"config.json: a {config.get('model_type')} cannot be rotated; its norms do more than "
            f"scale, or its heads lie otherwise. Families that can: {', '.join(FAMILIES)}."
        )
    value = next(x for x in weights.anatomy.linears if x.role == "v")
    head_dim = value.out_features // kv_heads(config)
    generator = torch.Generator().manual_seed(seed)
    return Rotated(
        weights,
        _orthogonal(hidden, generator) if stream else None,
        _orthogonal(head_dim, generator) if values else None,
    )


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix: Hadamard's with random signs where it has one of that size."""
    if size & (size - 1):
        drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return cast(Tensor, torch.linalg.qr(drawn).Q)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return cast(Tensor, matrix * signs / size**0.5)

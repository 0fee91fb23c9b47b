"""Turn a model round inside without changing what it says.

With an orthogonal Q, a residual stream h becomes h Q: what writes to it writes W ↦ Qᵀ W, what reads
it reads W ↦ W Q. A norm that divides by the length of h and multiplies by its weight commutes with
Q once that weight is part of the linears behind it. Values are turned head by head by R, which
o_proj turns back. Outliers of single channels are spread over all, and no trace of an earlier grid
is left in the weights.

Source: Ashkboos et al. 2024 (SliceGPT), arXiv:2401.15024; QuaRot, arXiv:2404.00456.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from compress.anatomy import Anatomy, Linear, head_width, norms_before, turning, turns, untied
from compress.errors import ModelError
from compress.kernels import orthogonal
from compress.kernels.activations import Rounds
from compress.kernels.kv import KVScales
from compress.surgery.walk import Weights

Turn = Literal["none", "hadamard", "random"]
_AT_ONCE = 8192  # rows of an embedding: a float32 copy of all would be a model's largest tensor


@dataclass(frozen=True)
class Rotated:
    """Weights that say what others say, turned when they are read; matrices become float32.

    A tied head comes off its embedding: it takes up the weight of the final norm.
    """

    weights: Weights
    residual: Tensor | None = None  # [D, D] float32, orthogonal: Q
    values: Tensor | None = None  # [head_dim, head_dim] float32, orthogonal: R

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``; its head is its own."""
        untying = {} if self.residual is None else {"tie_word_embeddings": False}
        return {**self.weights.config, **untying}

    @cached_property
    def anatomy(self) -> Anatomy:
        """The picture of the model; its head is its own."""
        found = self.weights.anatomy
        return found if self.residual is None else untied(found)

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block by their stored names."""
        block, stored = self.weights.anatomy.blocks[index], self.weights.block(index)
        norms = {} if self.residual is None else norms_before(self.weights.config, block)
        made = {shared: stored[f"{norm}.weight"] for shared, norm in norms.items()}
        turned = dict(stored)
        for linear in block.linears:
            turned |= self._turned(linear, stored, made.get(linear.shares))
        ones = {f"{norms[shared]}.weight": torch.ones_like(norm) for shared, norm in made.items()}
        return turned | ones

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors that belong to no block by their stored names."""
        tensors, picture = self.weights.outside(), self.weights.anatomy
        if self.residual is None:
            return tensors
        embedding, head, norm = (
            f"{name}.weight" for name in (picture.embedding, picture.head.name, picture.final_norm)
        )
        reads = tensors[embedding if picture.tied else head]
        return {
            **tensors,
            embedding: _product(tensors[embedding], self.residual),
            head: _product(reads, tensors[norm].float()[:, None] * self.residual),
            norm: torch.ones_like(tensors[norm]),
        }

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        """The linears of one block whose inputs are rounded."""
        return self.weights.inputs(index)

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches."""
        return self.weights.kv(index)

    def _turned(
        self, linear: Linear, stored: Mapping[str, Tensor], norm: Tensor | None
    ) -> dict[str, Tensor]:
        """The weight and the bias of one linear; it reads what a norm of this weight makes."""
        name, q, r = f"{linear.name}.weight", self.residual, self.values
        weight, bias = stored[name].float(), stored.get(f"{linear.name}.bias")
        if r is not None and linear.role == "v":
            weight = (r @ weight.view(-1, len(r), linear.in_features)).flatten(0, 1)
            bias = None if bias is None else _in_place(bias, bias.float().view(-1, len(r)) @ r.T)
        if r is not None and linear.role == "o":
            weight = (weight.view(linear.out_features, -1, len(r)) @ r.T).flatten(1)
        if q is not None and norm is not None:
            weight = (weight * norm.float()) @ q
        if q is not None and linear.role in ("o", "down"):
            weight = q.T @ weight
            bias = None if bias is None else _in_place(bias, bias.float() @ q)
        return {name: weight} | ({} if bias is None else {f"{linear.name}.bias": bias})


def _in_place(before: Tensor, turned: Tensor) -> Tensor:
    """A vector in the shape and dtype that it had."""
    return turned.flatten().to(before.dtype)


def _product(matrix: Tensor, q: Tensor) -> Tensor:
    """A tall matrix [V, D] of any float times q [D, D], a few rows at a time: [V, D] float32."""
    product = torch.empty(matrix.shape, dtype=torch.float32)
    for rows, out in zip(matrix.split(_AT_ONCE), product.split(_AT_ONCE), strict=True):
        torch.mm(rows.float(), q, out=out)
    return product


def rotated(weights: Weights, *, residual: Turn, values: Turn, seed: int = 0) -> Rotated:
    """A model turned inside; each matrix is made from the seed, so it is the same every time.

    Args:
        weights: of a family whose norms divide by a root mean square and multiply by their weight,
            where the residual stream is to be turned; with a v_proj, where values are.
        residual: by which kind of matrix to turn the residual stream.
        values: by which to turn the values of every head, all alike.
        seed: of the random ones, and of the signs of Hadamard's.

    Raises:
        ModelError: its family has other norms, or one matrix for q, k and v; or no Hadamard matrix
            of its size is known.
    """
    family = weights.anatomy.model_type
    head_dim = head_width(weights.anatomy.blocks[0], weights.config)
    if residual != "none" and not turns(family):
        raise ModelError(
            f"config.json: the residual stream of a {family} cannot be rotated; its norms do more "
            f"than scale, or its heads lie otherwise. Families that can: {', '.join(turning())}."
        )
    if values != "none" and head_dim is None:
        raise ModelError(
            f"config.json: the values of a {family} cannot be rotated; q, k and v are one matrix."
        )
    generator = torch.Generator().manual_seed(seed)
    return Rotated(
        weights,
        _orthogonal(weights.anatomy.hidden_size, residual, generator),
        _orthogonal(head_dim or 0, values, generator),
    )


def _orthogonal(size: int, kind: Turn, generator: torch.Generator) -> Tensor | None:
    """An orthogonal matrix [size, size] float32."""
    if kind == "none":
        return None
    if kind == "random":
        return orthogonal.random(size, generator).float()
    if orthogonal.hadamard_core(size) is None:
        raise ModelError(f"no Hadamard matrix of size {size} is known. Rotate by a random one.")
    return orthogonal.hadamard(size, generator).float()

"""One linear, stored and multiplied as its codes allow.

    weight                                       path       some rows                 many rows
    ───────────────────────────────────────────────────────────────────────────────────────────
    2 to 8 bits on a plain grid                  packed     codes, by `native`        expanded
    other codes, and all codes in float32        expanded   expanded at load
    stored dense                                 dense      as it is
    int8 rows of a linear that rounds to int8    int8       codes, by `native`        int8 product
    any other linear that rounds its inputs      rounding   round, expanded at load

Reading codes instead of weights is what makes decoding fast, but a prompt is cheaper with the
weight expanded once. What is expanded or dense is bfloat16 in the order in which `native` reads it,
so that it serves both; in float32, and on a GPU, it lies in rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from compress.kernels.activations import Inputs, Rounds
from compress.kernels.grid import Rounded
from compress.kernels.int8 import Int8Matrix, product
from compress.runtime.native.expand import signed_codes, transposed
from compress.runtime.native.products import multiply
from compress.runtime.packed import Packed, pack, reason, unit

Path = Literal["packed", "expanded", "dense", "int8", "rounding"]
Matrix = Tensor | Rounded
FEW_ROWS = 48  # up to which packed products beat expanding and multiplying (576 → 1536, AVX-512)


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b."""

    path: Path
    weight: Tensor | Packed | Int8Matrix
    bias: Tensor | None = None
    rounds: Rounds | None = None  # how it rounds x before it multiplies

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [N, I] to [N, O]."""
        weight, rounds = self.weight, self.rounds
        if rounds is None and isinstance(weight, Tensor):
            return functional.linear(x, weight, self.bias)
        if rounds is None:
            y = _by_codes(x, cast(Packed, weight))
        else:
            if isinstance(weight, Packed):  # of int8: as integer products want it
                scale = weight.scales[:, 0].flatten()[: weight.outputs].float()
                rounds = Int8Matrix(signed_codes(weight).T, scale, cast(Inputs, rounds))
            y = rounds.multiply(x, weight if isinstance(weight, Tensor) else x)  # int8 needs none
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)

    def rows(self, which: Tensor | slice) -> Tensor:
        """Rows of the weight, [n, I]: what an embedding looks up, without expanding the others."""
        weight = self.weight
        return weight[which] if isinstance(weight, Tensor) else weight.rows(which)


def _by_codes(x: Tensor, weight: Packed) -> Tensor:
    """X Wᵀ of x [N, I] and a packed weight: [N, O]."""
    if x.is_cpu:
        return multiply(weight, x) if len(x) <= FEW_ROWS else x @ transposed(weight)
    if x.is_cuda:
        from compress.runtime.triton import products

        if len(x) <= products.MOST_ROWS:
            return products.multiply(weight, x)
    return functional.linear(x, weight.rows())


def path(rounded: Rounded, dtype: torch.dtype) -> Path:
    """The path that a quantized matrix takes with activations of `dtype`."""
    if rounded.inputs is not None:
        return "int8" if isinstance(product(rounded), Int8Matrix) else "rounding"
    if dtype != torch.bfloat16:
        return "expanded"  # float32 is chosen to be exact
    return "packed" if reason(rounded) is None else "expanded"


def linear(matrix: Matrix, bias: Tensor | None, dtype: torch.dtype, device: str = "cpu") -> Linear:
    """Make a linear of a matrix [O, I] and its bias [O] for activations of `dtype` on a device."""
    bias = None if bias is None else bias.to(device, dtype)
    if isinstance(matrix, Tensor):
        return Linear("dense", _held(matrix, dtype, device), bias)
    chosen = path(matrix, dtype)
    if chosen == "packed":
        return Linear(chosen, pack(matrix).on(device), bias)
    if chosen == "expanded":
        return Linear(chosen, _held(matrix.dequantize(), dtype, device), bias)
    rounds = cast("Int8Matrix | Inputs", product(matrix)).on(device)
    if isinstance(rounds, Inputs):
        return Linear(chosen, matrix.dequantize().to(device, dtype), bias, rounds)
    if device == "cpu" and dtype == torch.bfloat16 and reason(matrix) is None:
        return Linear(chosen, pack(matrix), bias, matrix.inputs)
    return Linear(chosen, rounds, bias, rounds)


def _held(weight: Tensor, dtype: torch.dtype, device: str) -> Tensor | Packed:
    """Weights as they are multiplied: on a CPU, bfloat16 packed where their width allows."""
    whole = device != "cpu" or dtype != torch.bfloat16 or weight.shape[1] % unit(16)
    return weight.to(device, dtype) if whole else pack(weight)

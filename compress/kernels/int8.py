"""W8A8 and LLM.int8(): products of 8-bit integers, summed exactly and scaled once.

    y = s_x s_w Σ q_x q_w  +  Σ over outlier columns  x w        q_x, q_w: int8, the sum: int32

A row of inputs has one scale, a row of weights has one. Outlier columns keep their inputs as they
are; their weights are those that the int8 codes stand for, so the weight is stored once.

Source: Dettmers et al. 2022 (LLM.int8()), arXiv:2208.07339, Equation 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from compress.kernels.activations import Inputs, int8_steps, parted
from compress.kernels.grid import Rounded, round_to_nearest, storable

_MIDDLE = 128  # the code of zero
_CUDA_ROWS = 32  # a multiple of which products on a GPU get: they refuse 16 and fewer


@dataclass(frozen=True)
class Int8Matrix:
    """A weight of int8 codes, and how the inputs of its linear are rounded."""

    codes: Tensor  # [O, I] int8
    scale: Tensor  # [O] float32
    inputs: Inputs

    def multiply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """X Wᵀ of rounded inputs: [..., O] float32 of [..., I]; `weight` is not needed."""
        flat = x.reshape(-1, x.shape[-1])
        rest, scale, kept = parted(flat.float(), self.inputs)
        y = integer_product(int8_steps(rest, scale).to(torch.int8), self.codes).float()
        y.mul_(scale)
        if kept is not None and bool(kept.any()):
            which = kept.nonzero().flatten()
            # codes are exact in float32: they are scaled when all is summed
            y += linear(flat[:, which].float(), self.codes[:, which].float())
        return y.mul_(self.scale).view(*x.shape[:-1], -1)

    def rows(self, which: Tensor | slice) -> Tensor:
        """Rows of the weight as what their codes stand for, [n, I] float32."""
        return self.codes[which].float().mul_(self.scale[which, None])

    def on(self, device: str) -> Int8Matrix:
        """The same on a device."""
        return Int8Matrix(self.codes.to(device), self.scale.to(device), self.inputs.on(device))

    @property
    def nbytes(self) -> int:
        """Resident bytes."""
        return self.codes.nbytes + self.scale.nbytes


def int8_matrix(rounded: Rounded) -> Int8Matrix | None:
    """A weight as integer products want it; None where its inputs or itself are nothing for them.

    Rounded inputs must be int8, and a row of weights must be int8 codes that share one scale.
    """
    rows, columns = rounded.codes.shape
    one_scale = rounded.sym and rounded.bits == 8 and rounded.group_size == columns
    if rounded.inputs is None or rounded.inputs.numbers != "int8" or not one_scale:
        return None
    codes = rounded.codes.view(torch.int8) ^ -_MIDDLE  # less 128, modulo 256
    return Int8Matrix(codes, rounded.scale.view(rows), rounded.inputs)


def product(rounded: Rounded) -> Int8Matrix | Inputs | None:
    """How a linear multiplies that rounds its inputs; None where it does not."""
    return int8_matrix(rounded) or rounded.inputs


def integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """X Wᵀ of int8 [N, I] and [O, I], exact: [N, O] int32."""
    if x.is_cpu:
        return torch._int_mm(x, weight.T)
    if weight.shape[0] % 8 or weight.shape[1] % 8:  # cuBLAS refuses them; these sums are exact too
        return (x.double() @ weight.T.double()).int()
    filled = pad(x, (0, 0, 0, -len(x) % _CUDA_ROWS))
    return torch._int_mm(filled, weight.T)[: len(x)]


def round_rows(weight: Tensor) -> Rounded:
    """Round a weight [O, I] row by row by its largest magnitude, as LLM.int8() does.

    The scale is max|w| / 127, rounded to what bfloat16 and float16 both hold exactly: the largest
    weight of a row may move by 0.2 %.
    """
    scale = storable(weight.float().abs().amax(1, keepdim=True) / 127)
    middle = torch.full_like(scale, _MIDDLE)
    return round_to_nearest(weight, scale, middle, bits=8, sym=True)

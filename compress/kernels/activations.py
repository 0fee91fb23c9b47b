"""How the inputs of a linear are rounded when it multiplies in eight bits, or in four.

The numbers here are those that the product will see, written out in float32. Rows of inputs are
tokens: a dynamic scale belongs to one of them, so no token changes what another becomes. Outlier
columns are the exception: which columns stay as they are is decided by all rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from compress.kernels.numbers import nearest, power_of_two_above

Numbers = Literal["int8", "fp8_e4m3", "fp4_e2m1"]
# what the largest input of a row becomes
LARGEST = {"int8": 127.0, "fp8_e4m3": 448.0, "fp4_e2m1": 6.0}
_SMALLEST = 2.0**-100  # a row of zeros has a scale too


class Rounds(Protocol):
    """What multiplies inputs after rounding them: `Inputs`, or `int8.Int8Matrix`."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """X Wᵀ of rounded inputs [..., I] and the dense weight [O, I]: [..., O] float32."""


@dataclass(frozen=True)
class Inputs:
    """How one linear's inputs are rounded.

    Scales of e2m1 numbers are powers of two (mxfp4); with `scale`, they are e4m3 numbers times it
    (nvfp4), and still taken from each group of a row.
    """

    numbers: Numbers
    threshold: float = 0.0  # columns in which any |x| reaches it stay as they are; 0: none do
    columns: Tensor | None = None  # [K] int64, rising: columns that stay, whatever is in them
    scale: float | None = None  # of all inputs, known beforehand; None: one for each row
    group_size: int = 0  # columns of a row that share a scale; 0: all

    def on(self, device: str) -> Inputs:
        """The same on a device."""
        columns = self.columns
        return self if columns is None else replace(self, columns=columns.to(device))

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """X Wᵀ of rounded inputs [..., I] and a dense weight [O, I]: [..., O] float32.

        Where the weight is bfloat16, steps and scales are multiplied by it apart, since steps are
        exact in it and their products with scales would not be.
        """
        if weight.dtype != torch.bfloat16 or self.group_size:
            return linear(round_inputs(x, self), weight.float())
        rest, scale, kept = parted(x.float(), self)
        y = linear(_steps(rest, scale, self.numbers).bfloat16(), weight).float().mul_(scale)
        if kept is None or not kept.any():
            return y
        which = kept.nonzero().flatten()
        return y.add_(linear(x[..., which].bfloat16(), weight[:, which]))


def parted(x: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs [..., I] float32 less the columns that stay, their scales [..., 1], those columns."""
    kept = outliers(x, inputs)
    rest = x if kept is None else x.masked_fill(kept, 0.0)
    return rest, scales(rest, inputs), kept


def round_inputs(x: Tensor, inputs: Inputs) -> Tensor:
    """What inputs [..., I] are for the product: the same shape, float32; x is left alone."""
    x = x.float()
    if inputs.group_size:
        groups = x.unflatten(-1, (-1, inputs.group_size))
        return round_inputs(groups, replace(inputs, group_size=0)).flatten(-2)
    rest, scale, kept = parted(x, inputs)
    rounded = _steps(rest, scale, inputs.numbers).mul_(scale)
    return rounded if kept is None else torch.where(kept, x, rounded)


def outliers(x: Tensor, inputs: Inputs) -> Tensor | None:
    """Which columns [I] of inputs [..., I] stay as they are, as bool; None where none ever do."""
    if inputs.columns is not None:
        kept = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
        return kept.index_fill_(0, inputs.columns.to(x.device), True)
    if not inputs.threshold:
        return None
    return (x.abs() >= inputs.threshold).reshape(-1, x.shape[-1]).any(0)


def scales(x: Tensor, inputs: Inputs) -> Tensor:
    """What one step is worth in each row of inputs [..., I]: [..., 1] float32."""
    largest = x.abs().amax(-1, keepdim=True).float()
    if inputs.numbers == "fp4_e2m1":
        return _scales_of_four_bits(largest, inputs.scale)
    if inputs.scale is not None:
        return torch.full_like(largest, inputs.scale)
    return largest.clamp_min(_SMALLEST) / LARGEST[inputs.numbers]


def _scales_of_four_bits(largest: Tensor, over_all: float | None) -> Tensor:
    """Scales of groups with these largest inputs."""
    if over_all is None:
        return power_of_two_above(largest / 7)  # below 7 rounds to 6 well enough
    scale = nearest(largest / LARGEST["fp4_e2m1"] / over_all, "fp8_e4m3")
    return torch.where(scale == 0, 1.0, scale) * over_all  # such a group becomes zeros


def int8_steps(x: Tensor, scale: Tensor) -> Tensor:
    """Inputs in steps of their scale, whole and from -128 to 127; halves go to even."""
    return (x / scale).round_().clamp_(-128, 127)


def _steps(x: Tensor, scale: Tensor, numbers: Numbers) -> Tensor:
    """Inputs in steps of their scale, each the nearest of its numbers."""
    return int8_steps(x, scale) if numbers == "int8" else nearest(x / scale, numbers)

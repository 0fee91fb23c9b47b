"""How the inputs of a linear are rounded when it multiplies in eight bits.

The numbers here are those that the product will see, written out in float32. Rows of inputs are
tokens: a dynamic scale belongs to one of them, so no token changes what another becomes. Outlier
columns are the exception: which columns stay as they are is decided by all rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Numbers = Literal["int8", "fp8_e4m3"]
LARGEST = {"int8": 127.0, "fp8_e4m3": 448.0}  # what the largest input of a row becomes
_SMALLEST = 2.0**-100  # a row of zeros has a scale too


@dataclass(frozen=True)
class Inputs:
    """How one linear's inputs are rounded."""

    numbers: Numbers
    threshold: float = 0.0  # columns in which any |x| reaches it stay as they are; 0: none do
    columns: Tensor | None = None  # [K] int64, rising: columns that stay, whatever is in them
    scale: float | None = None  # of all inputs, known beforehand; None: one for each row

    def round(self, x: Tensor) -> Tensor:
        """See `round_inputs`."""
        return round_inputs(x, self)


def round_inputs(x: Tensor, inputs: Inputs) -> Tensor:
    """What inputs [..., I] are for the product: the same shape, float32; x is left alone."""
    x = x.float()
    kept = outliers(x, inputs)
    if kept is None:
        return _rounded(x, inputs)
    return torch.where(kept, x, _rounded(x.masked_fill(kept, 0.0), inputs))


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
    if inputs.scale is not None:
        return torch.full_like(x[..., :1], inputs.scale, dtype=torch.float32)
    largest = x.abs().amax(-1, keepdim=True).float()
    return largest.clamp_min(_SMALLEST) / LARGEST[inputs.numbers]


def _rounded(x: Tensor, inputs: Inputs) -> Tensor:
    scale = scales(x, inputs)
    steps = x / scale
    if inputs.numbers == "int8":
        return steps.round_().clamp_(-128, 127).mul_(scale)  # halves go to even
    limit = LARGEST["fp8_e4m3"]
    return steps.clamp_(-limit, limit).to(torch.float8_e4m3fn).float().mul_(scale)

"""The one integer grid: scales fixed before rounding and exact in bfloat16 and float16 alike.

A weight is ``(code - zero) * scale`` with unsigned codes. On a symmetric grid zero is the middle, ``2**(bits - 1)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rounded:
    """One matrix on the integer grid.

    codes [O, I] uint8; scale [O, G] float32, exact in bfloat16 and float16; zero [O, G] uint8. Column i belongs to
    group ``i // group_size``; group_size is I when there is one group a row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int
    sym: bool

    def dequantize(self) -> Tensor:
        """The weights these codes stand for: [O, I] float32."""
        rows, columns = self.codes.shape
        codes = self.codes.view(rows, -1, self.group_size).float()
        return ((codes - self.zero[..., None].float()) * self.scale[..., None]).view(rows, columns)


def storable(scale: Tensor) -> Tensor:
    """Round positive scales to values exact in bfloat16 and in float16; never zero."""
    smallest = 2.0**-17  # below it float16 holds fewer than bfloat16's 8 significant bits
    return scale.clamp(smallest, 65280.0).bfloat16().half().float()

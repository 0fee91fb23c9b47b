"""The two small sets of floating numbers: what their codes stand for, and the nearest of each.

            sign exponent mantissa   largest   smallest normal, and step below it
    e4m3      1      4       3          448           2**-6, 2**-9     codes are bytes
    e2m1      1      2       1            6               1, 1/2       codes are half bytes

Both are counted up as integers are: the next larger magnitude has the next code. There is no
infinity; e4m3 has one NaN of either sign, which no code made here is.

Source: OCP 8-bit floating point (OFP8) 1.0, and OCP microscaling formats (MX) 1.0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Numbers = Literal["int", "fp8_e4m3", "fp4_e2m1"]
LARGEST = {"fp8_e4m3": 448.0, "fp4_e2m1": 6.0}
BITS = {"fp8_e4m3": 8, "fp4_e2m1": 4}
_MANTISSA_BITS = {"fp8_e4m3": 3, "fp4_e2m1": 1}
_SMALLEST_NORMAL = {"fp8_e4m3": 2.0**-6, "fp4_e2m1": 1.0}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPONENT = 0x7F800000  # of a float32


def nearest(values: Tensor, numbers: Numbers) -> Tensor:
    """The nearest number for each value: float32 of the same shape; ties go to the even code.

    What lies beyond the largest number becomes it, infinities with it.
    """
    limit = LARGEST[numbers]
    values = values.float().clamp(-limit, limit)
    # The power of two below a value is its float32 with no mantissa; numbers of one such binade
    # are evenly spaced, and an even multiple of their spacing is an even code.
    binade = (values.view(torch.int32) & _EXPONENT).view(torch.float32)
    step = binade.clamp_min_(_SMALLEST_NORMAL[numbers]).mul_(0.5 ** _MANTISSA_BITS[numbers])
    return values.div_(step).round_().mul_(step)


def power_of_two_above(values: Tensor) -> Tensor:
    """The smallest power of two above each positive value, float32; 1 for zero."""
    return torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent)


def encode(values: Tensor, numbers: Numbers) -> Tensor:
    """The code of the nearest number for each value: uint8 of the same shape.

    Zero has the code 0, never that of a negative zero.
    """
    exact = nearest(values, numbers).add_(0.0)  # -0 + 0 is 0
    if numbers == "fp8_e4m3":
        return exact.to(torch.float8_e4m3fn).view(torch.uint8)
    bounds = torch.tensor(_E2M1, device=values.device)
    codes = torch.bucketize(exact.abs(), bounds, out_int32=True).to(torch.uint8)
    return codes.bitwise_or_((exact < 0).to(torch.uint8) << 3)


def decode(codes: Tensor, numbers: Numbers) -> Tensor:
    """The numbers that codes uint8 stand for: float32 of the same shape."""
    if numbers == "fp8_e4m3":
        return codes.view(torch.float8_e4m3fn).float()
    if numbers == "fp4_e2m1":
        table = torch.tensor((*_E2M1, *(-value for value in _E2M1)), device=codes.device)
        return table.index_select(0, codes.flatten().int()).view(codes.shape)
    return codes.float()

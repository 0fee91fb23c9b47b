"""The one integer grid: scales fixed before rounding and exact in bfloat16 and float16 alike.

A weight is ``(code - zero) * scale`` with unsigned codes. On a symmetric grid zero is the middle,
``2**(bits - 1)``; it reaches one step further down than up, so its scale may be negative, which
turns the longer side to where the weights need it (as in llama.cpp's Q4_0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.kernels.activations import Inputs
from compress.kernels.numbers import Numbers, decode

ScaleSearch = Literal["none", "mse", "hessian"]
_AT_ONCE = 1 << 18  # weights tried together in a search: fits the cache, bounds the memory
_CANDIDATES = 24  # shrunken ranges tried; 60 lower the error by another 0.1 %


@dataclass(frozen=True)
class Rounded:
    """One matrix on the integer grid, or on one of `kernels.numbers` times its scales.

    Column i belongs to group ``i // group_size``.
    """

    codes: Tensor  # [O, I] uint8
    scale: Tensor  # [O, G] float32, exact in bfloat16 and float16
    zero: Tensor  # [O, G] uint8; 0 where numbers are floating
    bits: int
    group_size: int  # I where there is one group a row
    sym: bool
    inputs: Inputs | None = None  # how it rounds what it is multiplied by; None: it does not
    numbers: Numbers = "int"  # what codes stand for
    scale_rows: int = 1  # neighbouring rows whose scales are equal and stored once; 0: all
    global_scale: float | None = None  # stored scales are these times it; None: just these

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero."""
        return 1 - int(self.dequantize().count_nonzero()) / self.codes.numel()

    def dequantize(self) -> Tensor:
        """The weights these codes stand for: [O, I] float32."""
        rows, columns = self.codes.shape
        weight = decode(self.codes, self.numbers).view(rows, -1, self.group_size)
        weight.sub_(self.zero[..., None]).mul_(self.scale[..., None])  # one copy, not three
        return weight.view(rows, columns)


@dataclass(frozen=True)
class Shifted(Rounded):
    """A matrix whose weights are ``code * scale + minimum``, as llama.cpp's Q4_1 has them.

    `zero` is what the grid was rounded with; the minimum is ``-zero * scale`` in float16.
    """

    minimum: Tensor | None = None  # [O, G] float32

    def dequantize(self) -> Tensor:
        """The weights that its reader computes: [O, I] float32."""
        if self.minimum is None:
            return super().dequantize()
        rows, columns = self.codes.shape
        weight = self.codes.view(rows, -1, self.group_size).float()
        weight.mul_(self.scale[..., None]).add_(self.minimum[..., None])
        return weight.view(rows, columns)


def storable(scale: Tensor) -> Tensor:
    """Round scales to values exact in bfloat16 and in float16, keeping their sign; never zero."""
    smallest = 2.0**-17  # below it float16 holds fewer than bfloat16's 8 significant bits
    magnitude = scale.abs().clamp(smallest, 65280.0)
    return torch.where(scale < 0, -magnitude, magnitude).bfloat16().half().float()


def round_codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes, as floats, where all arguments broadcast; halves go to even."""
    return (weight / scale).add_(zero).round_().clamp_(0, 2**bits - 1)


def fit(
    weight: Tensor,
    *,
    bits: int,
    group_size: int,
    sym: bool,
    search: ScaleSearch,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the scale and zero point of every group before anything is rounded.

    Args:
        weight: [O, I], any float.
        bits: width of the grid, 2 to 8.
        group_size: input columns sharing one scale; -1 for one group per row. Must divide I.
        sym: symmetric grid.
        search: none takes the range that clips nothing; mse tries shrunken ranges and, on a
            symmetric grid, both signs, by squared error; hessian does so with the error of column i
            weighted by importance[i].
        importance: [I], for search "hessian", which cannot do without.

    Returns:
        scale [O, G] float32 (storable), zero [O, G] float32 (whole numbers).
    """
    rows, columns = weight.shape
    size = columns if group_size == -1 else group_size
    groups = weight.float().reshape(rows, -1, size)
    if search == "none":
        return _spanning(groups, bits, sym, 1.0)
    known = weighing(search, importance, columns)
    weights = known.to(groups).view(-1, size)
    parts = groups.split(max(1, _AT_ONCE // columns))
    found = [_best(part, weights, bits, sym) for part in parts]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def weighing(search: ScaleSearch, importance: Tensor | None, columns: int) -> Tensor:
    """What the error of each column [I] counts in a search of scales; ones but for hessian."""
    if search != "hessian":
        return torch.ones(columns)
    if importance is None:
        raise ValueError("scales searched by hessian need the importance of every column")
    return importance


def round_to_nearest(
    weight: Tensor, scale: Tensor, zero: Tensor, *, bits: int, sym: bool
) -> Rounded:
    """Round every weight [O, I] to the nearest point of its grid; scale and zero are [O, G]."""
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, scale.shape[1], -1)
    codes = round_codes(groups, scale[..., None], zero[..., None], bits)
    size = columns // scale.shape[1]
    return Rounded(codes.view(rows, columns).byte(), scale, zero.byte(), bits, size, sym)


def _best(groups: Tensor, importance: Tensor, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    """The candidate of least weighted squared error for each group of [O, G, g]."""
    best_error = torch.full(groups.shape[:2], torch.inf, device=groups.device)
    best_scale, best_zero = torch.ones_like(best_error), torch.zeros_like(best_error)
    for scale, zero in _candidates(groups, bits, sym):
        exact = groups * scale.reciprocal()[..., None] + zero[..., None]
        missed = exact.round().clamp_(0, 2**bits - 1).sub_(exact).square_()
        error = torch.einsum("ogi,gi->og", missed, importance) * scale.square()
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _candidates(groups: Tensor, bits: int, sym: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for shrink in torch.linspace(1.05, 1 - 1.6 / bits, _CANDIDATES).tolist():
        scale, zero = _spanning(groups, bits, sym, shrink)
        yield scale, zero
        if sym:
            yield -scale, zero


def _spanning(groups: Tensor, bits: int, sym: bool, shrink: float) -> tuple[Tensor, Tensor]:
    """The grid whose range is `shrink` times that of the weights [O, G, g]."""
    steps = 2**bits - 1
    if sym:
        scale = storable(groups.abs().amax(-1) * (shrink * 2 / steps))
        return scale, torch.full_like(scale, 2.0 ** (bits - 1))
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scale = storable((high - low) * (shrink / steps))
    return scale, torch.round(-low * shrink / scale).clamp_(0, steps)

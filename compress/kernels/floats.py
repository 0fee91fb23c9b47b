"""Weights as small floating numbers times scales: fp8, nvfp4, mxfp4.

             numbers   one scale for                      scales are
    fp8      e4m3      a row, 128 x 128 or a matrix       8 significant bits, as on `grid`
    nvfp4    e2m1      16 columns of a row                e4m3, over one power of two a matrix
    mxfp4    e2m1      32 columns of a row                powers of two

A number times its scale is exact in float32; for nvfp4 and mxfp4 it is exact in bfloat16, too.
nvfp4 allows any float32 as the one scale of a matrix. A power of two takes at most one of the 15
binades of its other scales, and lets every reader compute the same weights in whatever order.

Source: Micikevicius et al. 2022, arXiv:2209.05433 (fp8); Rouhani et al. 2023, arXiv:2310.10537
(mxfp4); NVIDIA's nvfp4 as compressed-tensors 0.20 reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.kernels.grid import Rounded, ScaleSearch, storable, weighing
from compress.kernels.numbers import (
    BITS,
    LARGEST,
    Numbers,
    decode,
    encode,
    nearest,
    power_of_two_above,
)

Scales = Literal["float", "e4m3", "e8m0"]
_AT_ONCE = 1 << 18  # weights rounded together: fits the cache, bounds the memory
_RANGES = [2.0 ** (i / 16) for i in range(-2, 15)]  # an octave up all errors come again
_STEPS = range(-3, 7)  # of e4m3 scales, from the one that clips nothing: about an octave, too
_LEAST, _MOST = 2.0**-17, 2.0**15  # of powers of two: products are exact in float16, too


@dataclass(frozen=True)
class FloatGrid:
    """What the weights of a matrix are rounded to."""

    numbers: Numbers
    scales: Scales  # which numbers scales are chosen among
    group_size: int  # columns sharing one scale; -1: all
    scale_rows: int = 1  # neighbouring rows sharing one scale; 0: all
    over: float | None = None  # what e4m3 scales are divided by, see `global_scale`

    def round(self, weight: Tensor, scale: Tensor) -> Rounded:
        """Round every weight [O, I] to the nearest number times its scale [O, G]."""
        size = weight.shape[1] // scale.shape[1]
        codes = [encode(w / s[..., None], self.numbers) for w, s in _parts(weight, size, scale)]
        return Rounded(
            torch.cat(codes).flatten(1), scale, torch.zeros_like(scale, dtype=torch.uint8),
            BITS[self.numbers], size, sym=True, numbers=self.numbers, scale_rows=self.scale_rows,
            global_scale=self.over,
        )  # fmt: skip


def global_scale(weights: Sequence[Tensor]) -> float:
    """The power of two that brings the largest scale of nvfp4 to just below 448.

    Matrices that engines fuse into one must share it.
    """
    largest = max(float(weight.abs().amax()) for weight in weights)
    if largest == 0:
        return 1.0
    room = LARGEST["fp8_e4m3"] * LARGEST["fp4_e2m1"] / largest
    return 2.0 ** min(max(math.floor(math.log2(room)), -100), 100)


def fit(
    weight: Tensor,
    grid: FloatGrid,
    *,
    search: ScaleSearch = "none",
    importance: Tensor | None = None,
) -> Tensor:
    """Choose every scale before anything is rounded.

    Args:
        weight: [O, I], any float; a few rows at a time become float32.
        grid: its groups divide I.
        search: none takes the range that clips nothing; mse tries those around it by squared error;
            hessian does so with the error of column i weighted by importance[i].
        importance: [I], for search "hessian", which cannot do without.

    Returns:
        scale [O, G] float32, storable, equal where rows share one.
    """
    rows, columns = weight.shape
    size = columns if grid.group_size == -1 else grid.group_size
    together = grid.scale_rows or rows
    peaks = torch.cat([part.abs().amax(-1) for (part,) in _parts(weight, size)])
    limit = _by_unit(peaks, together).amax(1) / LARGEST[grid.numbers]
    known = weighing(search, importance, columns)
    counts = known.to(limit).view(-1, size)
    least, best = torch.full_like(limit, torch.inf), limit
    for scale in _candidates(limit, grid, search):
        spread = scale.repeat_interleave(together, 0)[:rows]
        parts = _parts(weight, size, spread)
        missed = torch.cat([_missed(w, s, grid.numbers, counts) for w, s in parts])
        error = _by_unit(missed, together).sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.repeat_interleave(together, 0)[:rows]


def _candidates(limit: Tensor, grid: FloatGrid, search: ScaleSearch) -> Iterator[Tensor]:
    """Storable scales around those [U, G] that clip nothing, beginning with the nearest to them."""
    if grid.scales == "float":
        yield storable(limit)
        yield from (storable(limit * r) for r in _RANGES if search != "none")
    elif grid.scales == "e4m3":
        over = grid.over or 1.0
        codes = encode(limit * over, "fp8_e4m3").int()  # the next larger number has the next code
        for step in (0,) if search == "none" else (0, *_STEPS):
            code = (codes + step).clamp(1, 126).to(torch.uint8)  # 0 is zero, 127 is no number
            yield decode(code, "fp8_e4m3") / over
    else:
        scale = power_of_two_above(limit * (6 / 7))  # what is below 7 rounds to 6 well enough
        yield scale.clamp(_LEAST, _MOST)
        if search != "none":
            yield (scale / 2).clamp(_LEAST, _MOST)


def _missed(groups: Tensor, scale: Tensor, numbers: Numbers, counts: Tensor) -> Tensor:
    """The weighted squared error of every group: [O, G]."""
    exact = groups / scale[..., None]
    missed = nearest(exact, numbers).sub_(exact).square_()
    return torch.einsum("ogi,gi->og", missed, counts) * scale.square()


def _parts(weight: Tensor, size: int, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few rows at a time: groups [n, G, size] float32, and the same rows of the others."""
    at_once = max(1, _AT_ONCE // weight.shape[1])
    for part, *rest in zip(*(t.split(at_once) for t in (weight, *others)), strict=True):
        yield part.float().reshape(len(part), -1, size), *rest


def _by_unit(values: Tensor, together: int) -> Tensor:
    """Values [O, G] of rows, those of rows that share a scale side by side: [U, together, G]."""
    rows, groups = values.shape
    padded = torch.nn.functional.pad(values, (0, 0, 0, -rows % together))
    return padded.view(-1, together, groups)

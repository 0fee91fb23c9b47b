"""Round linears to floating numbers: which scales they share, and which they share with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compress.kernels.floats import FloatGrid, fit, global_scale
from compress.kernels.grid import Rounded
from compress.recipe.scheme import Scheme

_SCALE_ROWS = {"channel": 1, "block": 128, "tensor": 0}


def round_stack(stack: Sequence[Tensor], importance: Tensor | None, scheme: Scheme) -> Rounded:
    """Round matrices [O, I] that engines may fuse; their rows come back as one matrix.

    What a whole matrix shares, all of the stack shares: engines that fuse its matrices hold one
    such scale, and would round again where there are several. Blocks of rows begin anew with each.

    Args:
        stack: in the order of their rows.
        importance: [I], where the scheme's search asks for it.
        scheme: of all of them.
    """
    grid = grid_of(scheme, stack)
    whole = stack if grid.scale_rows > 1 or len(stack) == 1 else [torch.cat(list(stack))]
    search = scheme.scale_search
    scales = [fit(matrix, grid, search=search, importance=importance) for matrix in whole]
    parts = [grid.round(matrix, scale) for matrix, scale in zip(whole, scales, strict=True)]
    codes, scale, zero = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale", "zero")
    )
    return replace(parts[0], codes=codes, scale=scale, zero=zero)


def grid_of(scheme: Scheme, stack: Sequence[Tensor]) -> FloatGrid:
    """What the weights of a stack are rounded to."""
    if scheme.method == "fp8":
        rows = _SCALE_ROWS[scheme.strategy]
        return FloatGrid("fp8_e4m3", "float", scheme.group_size, rows)
    if scheme.method == "nvfp4":
        return FloatGrid("fp4_e2m1", "e4m3", scheme.group_size, over=global_scale(stack))
    return FloatGrid("fp4_e2m1", "e8m0", scheme.group_size)

"""Round linears to floating numbers: which scales they share, and which they share with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compress.kernels.activations import LARGEST, Inputs
from compress.kernels.floats import FloatGrid, fit, global_scale
from compress.kernels.grid import Rounded, storable
from compress.recipe.scheme import Scheme


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


def inputs_of(scheme: Scheme, peaks: Tensor | None) -> Inputs | None:
    """How linears round their inputs; what is static follows the largest magnitudes [I] seen.

    Linears that share an input share its scale, as those must that engines fuse.
    """
    if scheme.activations == "none":
        return None
    largest = None
    if scheme.activations == "static":
        if peaks is None:
            raise ValueError("a static scale of inputs needs inputs that were observed")
        largest = peaks.amax()
    if scheme.method == "fp8":
        scale = None if largest is None else float(storable(largest / LARGEST["fp8_e4m3"]))
        return Inputs("fp8_e4m3", scale=scale, group_size=scheme.input_group)
    over = None if largest is None else 1 / global_scale([largest])
    return Inputs("fp4_e2m1", scale=over, group_size=scheme.input_group)


def grid_of(scheme: Scheme, stack: Sequence[Tensor]) -> FloatGrid:
    """What the weights of a stack are rounded to."""
    numbers, size = scheme.numbers, scheme.group_size
    if scheme.method == "fp8":
        return FloatGrid(numbers, "float", size, scheme.scale_rows)
    if scheme.method == "nvfp4":
        return FloatGrid(numbers, "e4m3", size, over=global_scale(stack))
    return FloatGrid(numbers, "e8m0", size)

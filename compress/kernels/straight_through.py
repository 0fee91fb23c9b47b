"""Weights of the integer grid whose codes learn: rounded on the way forward, not on the way back.

A latent weight u is counted in steps of its own grid, so that one learning rate suits all linears:

    w = (clamp(round(u), 0, 2**bits - 1) - zero) · scale

On the way back rounding passes what reaches it unchanged. A latent weight that left the grid is
only ever pulled back: what would push it further out is dropped. Where codes stay while a scale
moves, the gradient by the scale is no estimate: it is Σ g · (code - zero).

Source: Bengio et al. 2013, arXiv:1308.3432; learned scales: Esser et al. 2020 (LSQ),
arXiv:1902.08153, whose latent weights are in the weights' own unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.grid import Rounded

_AT_ONCE = 1 << 18  # weights made together: what lies between them and their codes fits the cache
_INSIDE = 0.5 - 2.0**-6  # of a cell, from its middle: no start rounds to a neighbour


@dataclass(frozen=True)
class Steps:
    """What stays of a grid while its codes and scales learn."""

    zero: Tensor  # [O, G] uint8
    bits: int
    pruned: Tensor | None = None  # [O, I] bool, True where a latent weight stays; None: nowhere


def start(matrix: Rounded, exact: Tensor | None = None) -> Tensor:
    """Latent weights that round to the codes there are.

    Where a code is the nearest to what was rounded, a latent weight lies where that does. Where it
    is not, it makes up for other weights' errors, and nobody knows how narrowly it was chosen: the
    latent weight is in the middle. At the edge, all of these would fall back at once.

    Args:
        matrix: of integers.
        exact: [O, I], any float: what was rounded; None: not known.

    Returns:
        [O, I] float32.
    """
    middle = matrix.codes.float()
    if exact is None:
        return middle
    steps = exact.float().view(*matrix.scale.shape, -1) / matrix.scale[..., None]
    there = steps.add_(matrix.zero[..., None]).view_as(middle)
    nearest = codes(there, matrix.bits) == middle
    return torch.where(nearest, there.clamp(middle - _INSIDE, middle + _INSIDE), middle)


def codes(latent: Tensor, bits: int) -> Tensor:
    """The codes of latent weights, as floats; halves go to even."""
    return latent.round().clamp_(0, 2**bits - 1)


def weights(latent: Tensor, scale: Tensor, steps: Steps, *, dtype: torch.dtype) -> Tensor:
    """Make weights; gradients reach scales and, where they are floats, latent weights.

    Args:
        latent: [O, I] float32; or codes that stay, uint8.
        scale: [O, G] float32.
        steps: all else of the grid.
        dtype: of the weights. In bfloat16 they are those of float32, rounded once.

    Returns:
        [O, I].
    """
    apply: Any = _Weights.apply
    made: Tensor = apply(latent, scale, steps, dtype)
    return made


def inputs(x: Tensor, how: Inputs) -> Tensor:
    """Inputs [..., I] as their linear rounds them, in their own dtype; gradients pass unchanged.

    Right where no input is clipped, as where each row has the scale of its largest.
    """
    apply: Any = _Inputs.apply
    rounded: Tensor = apply(x, how)
    return rounded


class _Inputs(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, how: Inputs) -> Tensor:
        return round_inputs(x, how).to(x.dtype)

    @staticmethod
    def backward(_: Any, above: Tensor) -> tuple[Tensor, None]:
        return above, None


class _Weights(torch.autograd.Function):
    """Keeps nothing but what it is made of: codes are found again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, scale: Tensor, steps: Steps, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(latent, scale)
        ctx.steps = steps
        made = torch.empty(latent.shape, dtype=dtype, device=latent.device)
        for rows in _rows(latent):
            counted = _counted(latent[rows], scale.dtype, steps, rows)
            torch.mul(counted, scale[rows, :, None], out=made[rows].view_as(counted))
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        latent, scale = ctx.saved_tensors
        steps: Steps = ctx.steps
        by_scale = torch.empty_like(scale)
        by_latent = torch.empty_like(latent) if ctx.needs_input_grad[0] else None
        for rows in _rows(latent):
            counted = _counted(latent[rows], scale.dtype, steps, rows)
            given = above[rows].to(scale.dtype).reshape(counted.shape)
            by_scale[rows] = counted.mul_(given).sum(-1)
            if by_latent is not None:
                slope = by_latent[rows]
                torch.mul(given, scale[rows, :, None], out=slope.view_as(counted))
                _stay_inside(slope, latent[rows], steps.bits)
                if steps.pruned is not None:
                    slope.masked_fill_(steps.pruned[rows], 0.0)
        return by_latent, by_scale, None, None


def _counted(latent: Tensor, dtype: torch.dtype, steps: Steps, rows: slice) -> Tensor:
    """Some rows of codes less their zeros, [o, G, group size]; memory of their own."""
    zero = steps.zero[rows, :, None]
    found = codes(latent.to(dtype), steps.bits)
    return found.view(*zero.shape[:2], -1).sub_(zero)


def _stay_inside(slope: Tensor, latent: Tensor, bits: int) -> None:
    """Drop what would push latent weights further out of their grid: a step goes down a slope."""
    beyond = latent - latent.clamp(-0.5, 2**bits - 0.5)
    slope.masked_fill_(beyond.mul_(slope) < 0, 0.0)


def _rows(latent: Tensor) -> Iterator[slice]:
    """Rows that are made together."""
    size = max(1, _AT_ONCE // latent.shape[1])
    return (slice(first, first + size) for first in range(0, len(latent), size))

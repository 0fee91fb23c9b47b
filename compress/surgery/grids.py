"""Linears whose weights are made of integers and scales that learn, once for many forwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.kernels import straight_through
from compress.kernels.grid import Rounded, storable
from compress.kernels.straight_through import Steps
from compress.surgery import rounding

_NAME = "grid"  # of the submodule that makes a linear's weight
PART = f".{_NAME}."  # of the names of what learns in one


class Grid(nn.Module):
    """Makes one weight: of a factor for each scale, and of codes that stay or latent ones."""

    zero: Tensor
    scale: Tensor
    codes: Tensor
    pruned: Tensor | None

    def __init__(
        self, matrix: Rounded, *, latent: Tensor | None = None, masked: bool = False,
        transposed: bool = False, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """Begin at a matrix as it is.

        Args:
            matrix: codes and scales.
            latent: [O, I] float32, rounding to its codes, to learn in their place; None: they stay.
            masked: codes that are zero stay: they were pruned.
            transposed: as in `anatomy.Linear`.
            dtype: of the weight.
        """
        super().__init__()
        self.matrix, self.transposed, self.dtype = matrix, transposed, dtype
        pruned = None
        if masked and latent is not None:
            pruned = matrix.codes == matrix.zero.repeat_interleave(matrix.group_size, 1)
        self.register_buffer("scale", matrix.scale, persistent=False)
        self.register_buffer("zero", matrix.zero, persistent=False)
        self.register_buffer("pruned", pruned, persistent=False)
        self.latent = None if latent is None else nn.Parameter(latent)
        if latent is None:
            self.register_buffer("codes", matrix.codes, persistent=False)
        self.factor = nn.Parameter(torch.ones_like(matrix.scale))

    def forward(self) -> Tensor:
        """The weight as its linear stores it."""
        source = self.codes if self.latent is None else self.latent
        steps = Steps(self.zero, self.matrix.bits, self.pruned)
        weight = straight_through.weights(source, self._scales(), steps, dtype=self.dtype)
        return weight.T if self.transposed else weight

    def _scales(self) -> Tensor:
        """[O, G] as they are stored; gradients pass the rounding unchanged."""
        moved = self.scale * self.factor
        return moved + (storable(moved) - moved).detach()

    @torch.no_grad()
    def rounded(self) -> Rounded:
        """What was learned, on the CPU."""
        codes = self.matrix.codes
        if self.latent is not None:
            codes = straight_through.codes(self.latent, self.matrix.bits).byte().cpu()
        return dataclasses.replace(self.matrix, codes=codes, scale=self._scales().cpu())


def replace_weight(linear: nn.Module, grid: Grid) -> None:
    """Let a linear have no weight but what its grid makes while `made` lasts.

    One that rounds its inputs goes on to do so, and lets gradients through.
    """
    del linear.weight
    linear.add_module(_NAME, grid)
    if (how := grid.matrix.inputs) is None:
        return

    def round_first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return straight_through.inputs(args[0], how), *args[1:]

    rounding.detach(linear)
    linear.register_forward_pre_hook(round_first)


def read_from(head: Any, embedding: Any) -> None:
    """Let a tied head multiply by what the grid of the embedding makes, and hold no copy."""
    del head.weight
    head.forward = lambda hidden: functional.linear(hidden, embedding.weight, head.bias)


def of(model: nn.Module) -> Iterator[tuple[str, nn.Module, Grid]]:
    """Every linear with a grid: its name, itself, its grid."""
    for name, module in model.named_modules():
        if isinstance(grid := getattr(module, _NAME, None), Grid):
            yield name, module, grid


@contextmanager
def made(model: nn.Module) -> Iterator[None]:
    """Make the weights of all grids once, for whatever is computed meanwhile.

    At the end the gradients that have reached them, summed, go on to what they are made of.
    """
    pairs = []
    for _, linear, grid in of(model):
        whole = grid()
        linear.weight = whole.detach().requires_grad_()
        pairs.append((linear, whole))
    yield
    while pairs:  # what is done with makes room for the gradients of what it was made of
        linear, whole = pairs.pop()
        gradient = linear.weight.grad
        del linear.weight
        if gradient is not None:
            whole.backward(gradient)

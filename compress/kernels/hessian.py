"""The second moments of a linear's inputs, and the only damped inverse in the project."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import SolveError
from compress.kernels.precision import bfloat16_products

_PANEL = 384  # columns a product; only the products on and above the diagonal are made


def accumulate(total: Tensor, inputs: Tensor) -> None:
    """Add the sum over tokens of x xᵀ to the upper panels of `total`; finish with `mean`.

    Products of bfloat16 inputs are exact in float32, so they may run on bfloat16 units; sums are
    always float32.

    Args:
        total: [I, I] float32, written.
        inputs: [N, I], any float.
    """
    columns = inputs.shape[1]
    exact_in_bfloat16 = inputs.dtype == torch.bfloat16
    x = inputs.float()
    with bfloat16_products() if exact_in_bfloat16 else contextlib.nullcontext():
        for start in range(0, columns, _PANEL):
            stop = min(start + _PANEL, columns)
            total[start:stop, start:] += x[:, start:stop].T @ x[:, start:]


def mean(total: Tensor, tokens: float) -> Tensor:
    """The Hessian: mean over tokens of x xᵀ, [I, I] float32, symmetric, undamped.

    `total` itself becomes it: with a large I, copies are what a solver's peak is made of.
    """
    total.triu_().div_(tokens)
    total += torch.triu(total, 1).T
    return total


@dataclass(frozen=True)
class Inverse:
    """The damped inverse of a Hessian, in the forms that solvers ask for.

    Those are [I, I]; `damped` is what was inverted.
    """

    damped: Tensor
    inverse: Tensor
    damp_percent: float  # what it took
    dead: Tensor  # [I] bool: inputs that were always zero

    @property
    def curvature(self) -> Tensor:
        """[I]: how the error grows when one weight moves and all others make up for it."""
        return 1 / self.inverse.diagonal()

    def factor(self, order: Tensor) -> Tensor:
        """The upper Cholesky factor [I, I] of the inverse, its columns visited in `order`."""
        upper: Tensor = torch.linalg.cholesky(self.inverse[order[:, None], order], upper=True)
        return upper


def invert(hessian: Tensor, damp_percent: float) -> Inverse:
    """Damp a Hessian, raising the damping tenfold until it can be inverted.

    Args:
        hessian: [I, I] float32, mean of x xᵀ, undamped; read only.
        damp_percent: fraction of mean(diag) added to the diagonal; 0.01 is 1 %.

    Raises:
        SolveError: not finite, or not positive definite at damping 1.0.
    """
    if not torch.isfinite(hessian).all():
        raise SolveError(
            "its hessian holds NaN or infinite values: the inputs of this linear overflowed"
        )
    dead = hessian.diagonal() == 0
    diagonal = torch.where(dead, 1.0, hessian.diagonal())
    average = diagonal.mean()
    damp = damp_percent
    while damp <= max(1.0, damp_percent):
        damped = hessian.clone()
        damped.diagonal().copy_(diagonal + damp * average)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            if not torch.linalg.cholesky_ex(inverse).info:
                return Inverse(damped, inverse, damp, dead)
        damp = max(damp * 10, 1e-4)
    raise SolveError(
        f"its hessian is not positive definite, with damp_percent raised from {damp_percent} to 1.0"
    )


def output_errors(weight: Tensor, rounded: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squares per token of each output, of (W - Q) x and of W x.

    Args:
        weight: W, [O, I] float32.
        rounded: Q, [O, I] float32.
        hessian: [I, I] float32.

    Returns:
        Two [O].
    """
    difference = weight - rounded
    return ((difference @ hessian) * difference).sum(1), ((weight @ hessian) * weight).sum(1)

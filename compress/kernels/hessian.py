"""The second moments of a linear's inputs, and the only damped inverse in the project."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import SolveError
from compress.kernels.precision import bfloat16_products

_PANEL = 384  # columns a product; only the products on and above the diagonal are made


def accumulate(total: Tensor, inputs: Tensor, times: float = 1.0) -> None:
    """Add the sum over tokens of x xᵀ to the upper panels of `total`; finish with `mean`.

    Products of bfloat16 inputs are exact in float32, so they may run on bfloat16 units; sums are
    always float32.

    Args:
        total: [I, I] float32, written.
        inputs: [N, I], any float.
        times: how many times each counts. Inputs enlarged before would be rounded to their type.
    """
    columns = inputs.shape[1]
    x = inputs.float()
    with _exact(inputs):
        for start in range(0, columns, _PANEL):
            stop = min(start + _PANEL, columns)
            total[start:stop, start:].add_(x[:, start:stop].T @ x[:, start:], alpha=times)


def accumulate_pairs(total: Tensor, left: Tensor, right: Tensor, times: float = 1.0) -> None:
    """Add the sum over tokens of l rᵀ to all of `total` [L, R] float32; see `accumulate`.

    Args:
        total: [L, R] float32, written.
        left: [N, L], any float.
        right: [N, R], any float.
        times: how many times each counts.
    """
    with _exact(left, right):
        total.addmm_(left.T.float(), right.float(), alpha=times)


def outputs(inputs: Tensor, weight: Tensor) -> Tensor:
    """X Wᵀ of inputs [N, I] and a weight [O, I], summed in float32: [N, O] float32."""
    with _exact(inputs, weight):
        return inputs.float() @ weight.T.float()


def _exact(*factors: Tensor) -> contextlib.AbstractContextManager[None]:
    """Lets products run on bfloat16 units where that rounds none of their factors."""
    fits = all(factor.dtype == torch.bfloat16 for factor in factors)
    return bfloat16_products() if fits else contextlib.nullcontext()


def mean(total: Tensor, tokens: float) -> Tensor:
    """The Hessian: mean over tokens of x xᵀ, [I, I] float32, symmetric, undamped.

    `total` itself becomes it: with a large I, copies are what a solver's peak is made of.
    """
    total.triu_().div_(tokens)
    total += torch.triu(total, 1).T
    return total


def with_energies(hessian: Tensor, energies: Tensor) -> Tensor:
    """How columns go together from some tokens, how large they are from all: [I, I], in place.

    Rows and columns are scaled, so correlations stay, and what was positive semidefinite does, too.

    Args:
        hessian: [I, I] float32, of some tokens; written.
        energies: [I] float32, the mean square of each column over all tokens: the new diagonal.
    """
    seen = hessian.diagonal()
    scale = torch.where(seen > 0, energies / seen, 0.0).sqrt_()
    hessian.mul_(scale).mul_(scale[:, None])
    hessian.diagonal().copy_(energies)
    return hessian


def second_moment(inputs: Tensor) -> Tensor:
    """The Hessian [I, I] float32 of inputs [N, I] that are all at hand; see `mean`."""
    total = torch.zeros(inputs.shape[1], inputs.shape[1], device=inputs.device)
    for part in inputs.split(4096):
        accumulate(total, part)
    return mean(total, len(inputs))


@dataclass(frozen=True)
class Factor:
    """What GPTQ asks of a Hessian: the upper Cholesky factor of its damped inverse."""

    damped: Tensor  # [I, I]
    upper: Tensor  # [I, I], rows and columns in `order`
    order: Tensor  # [I], in which columns are visited
    dead: Tensor  # [I] bool: inputs that were always zero


@dataclass(frozen=True)
class Inverse:
    """A damped Hessian and its inverse, [I, I] both.

    `damped` is the Hessian that was given, its diagonal raised: with a large I, copies are what a
    solver's peak is made of.
    """

    damped: Tensor
    inverse: Tensor
    damp_percent: float  # what it took
    dead: Tensor  # [I] bool: inputs that were always zero

    @property
    def curvature(self) -> Tensor:
        """[I]: how the error grows when one weight moves and all others make up for it."""
        return torch.where(self.dead, 0.0, 1 / self.inverse.diagonal())

    def factor(self, *, desc_act: bool) -> Factor:
        """Factor the inverse, columns visited as they come or by falling diagonal of the damped."""
        order = torch.arange(len(self.dead), device=self.dead.device)
        if desc_act:
            order = torch.argsort(self.damped.diagonal(), descending=True, stable=True)
        upper = self.inverse.T[order[:, None], order].T  # by columns, as LAPACK writes: in place
        torch.linalg.cholesky(upper, upper=True, out=upper)
        return Factor(self.damped, upper, order, self.dead)


def invert(hessian: Tensor, damp_percent: float) -> Inverse:
    """Damp a Hessian, raising the damping tenfold until it can be inverted.

    Args:
        hessian: [I, I] float32, mean of x xᵀ; written: its diagonal is damped, also on an error.
        damp_percent: fraction of mean(diag) added to the diagonal; 0.01 is 1 %.

    Raises:
        SolveError: not finite, or not positive definite at damping 1.0.
    """
    if not torch.isfinite(hessian).all():
        raise SolveError(
            "its hessian holds NaN or infinite values: the inputs of this linear overflowed"
        )
    dead = hessian.diagonal() == 0
    average = hessian.diagonal()[~dead].mean() if not dead.all() else hessian.new_ones(())
    diagonal = torch.where(dead, average, hessian.diagonal())
    for damp in _dampings(damp_percent):
        hessian.diagonal().copy_(diagonal + damp * average)
        if (inverse := _inverse(hessian)) is not None:
            return Inverse(hessian, inverse, damp, dead)
    raise SolveError(
        f"its hessian is not positive definite, with damp_percent raised from {damp_percent} to 1.0"
    )


def _dampings(first: float) -> Iterator[float]:
    """`first`, ten times as much, and so on up to 1.0, which is the last."""
    yield first
    while first < 1.0:
        first = min(max(10 * first, 1e-4), 1.0)
        yield first


def _inverse(damped: Tensor) -> Tensor | None:
    """The inverse [I, I], None where it or the matrix is not positive definite in float32."""
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return None
    inverse: Tensor = torch.cholesky_inverse(lower)
    del lower  # [I, I], before the next one is made
    return None if torch.linalg.cholesky_ex(inverse).info else inverse


def leaning_inverse(damped: Tensor) -> tuple[Tensor, Tensor]:
    """A damped Hessian scaled to a diagonal of ones, and the inverse of that plus one, [I, I] both.

    The inverse of a problem that is drawn, with the weight 1, to a solution nearby; always positive
    definite where the Hessian is.
    """
    norms = damped.diagonal().sqrt()
    scaled = damped / norms[:, None] / norms
    leaning = scaled.clone()
    leaning.diagonal().add_(1.0)
    return scaled, torch.cholesky_inverse(torch.linalg.cholesky(leaning))


def output_errors(weight: Tensor, rounded: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squares per token of each output, of (W - Q) x and of W x.

    Args:
        weight: W, [O, I] float32.
        rounded: Q, [O, I] float32; written: it becomes Q - W.
        hessian: [I, I] float32.

    Returns:
        Two [O].
    """
    return _quadratic(rounded.sub_(weight), hessian), _quadratic(weight, hessian)


def _quadratic(rows: Tensor, hessian: Tensor) -> Tensor:
    """For each row x of [O, I], x H xᵀ."""
    return (rows @ hessian).mul_(rows).sum(1)

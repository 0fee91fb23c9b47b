"""Scores of weights that look at no other weight: by magnitude, or by magnitude and input."""

from __future__ import annotations

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w|, [O, I] float32: what a weight is, whatever it is given."""
    return weight.float().abs()


def wanda(weight: Tensor, hessian: Tensor) -> Tensor:
    """|w| times the norm of its input, [O, I] float32: what a weight adds to its output.

    Args:
        weight: [O, I], any float.
        hessian: [I, I] float32, mean of x xᵀ over tokens; only its diagonal is read.

    Source: Sun et al. 2023, arXiv:2306.11695, equation 1; compared within rows, as there.
    """
    return weight.float().abs() * hessian.diagonal().clamp_min(0).sqrt()

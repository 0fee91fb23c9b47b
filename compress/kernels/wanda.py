"""Scores of weights that look at no other weight: by magnitude, or by magnitude and input."""

from __future__ import annotations

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w|, [O, I] float32: what a weight is, whatever it is given."""
    return weight.float().abs()


def wanda(weight: Tensor, energies: Tensor) -> Tensor:
    """|w| times the norm of its input, [O, I] float32: what a weight adds to its output.

    Args:
        weight: [O, I], any float.
        energies: [I], the mean square of each input over tokens: the diagonal of its Hessian.

    Source: Sun et al. 2023, arXiv:2306.11695, equation 1; compared within rows, as there.
    """
    return weight.float().abs() * energies.sqrt()

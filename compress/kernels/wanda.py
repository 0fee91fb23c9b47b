"""Scores of weights that look at no other weight: by magnitude, or by magnitude and input."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, float64


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


def outliers(weights: Mapping[str, Tensor], energies: Mapping[str, Tensor], times: float) -> float:
    """The share of scores, by `wanda`, that are more than so many times their mean.

    Args:
        weights: of the linears of one block, [O, I] each by name, any float.
        energies: as for `wanda`, [I] each by the same names.
        times: M of the paper; 5 is what it recommends.

    Source: Yin et al. 2024 (OWL), arXiv:2310.05175, equation 2.
    """
    count = sum(weight.numel() for weight in weights.values())
    total = sum(float(wanda(w, energies[n]).sum(dtype=float64)) for n, w in weights.items())
    limit = times * total / count
    return sum(int((wanda(w, energies[n]) > limit).sum()) for n, w in weights.items()) / count

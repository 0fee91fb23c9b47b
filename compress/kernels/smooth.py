"""SmoothQuant and AWQ: move what is hard to round between the inputs of linears and their weights.

Input channel j is divided by s_j and column j of the weights multiplied by it, so the product is
the same; what made the input is divided by s_j beforehand. Here every s_j is a power of two: no
weight and no norm is rounded anew by it in bfloat16 or float32, and the model computes, bit for
bit, what it did. float16 has too few exponents for small weights: recipes refuse it.

Source: Xiao et al. 2023, arXiv:2211.10438, Equation 4; the search is our own. Lin et al. 2023
(AWQ), arXiv:2306.00978, Equation 5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.kernels.grid import ScaleSearch, fit, round_to_nearest

_FURTHEST = 10.0  # powers of two from 1
_STEPS, _RATE = 150, 0.05  # of the search
_SEEN = 128  # inputs, and twice as many rows of weights, that it looks at
_ROWS = 64  # of each weight, and up to twice as many, on which AWQ's exponents are tried
_EXPONENTS = 10  # steps from 0 to 1 in which AWQ's is tried


def factors(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """By what to divide input channels: powers of two, [I] float32.

    Args:
        inputs: [I], the largest magnitude of each input channel.
        weights: [I], the largest magnitude in each column of the weights that read them.
        strength: 0 makes the columns of the weights alike, 1 the inputs; the paper's alpha.
    """
    return _powers(_exponents(inputs, weights, strength))


@torch.inference_mode(mode=False)  # a gradient descends, whoever asks
@torch.enable_grad()
def searched_factors(
    rows: Tensor, weight: Tensor, start: Tensor, spread: Callable[[Tensor], Tensor]
) -> Tensor:
    """Factors that minimise the error expected of int8 inputs and int8 weights: [C] float32.

    A step is worth the largest of its row / 127, of inputs and of weights alike, and what is
    rounded is off by a twelfth of a squared step. So the squared error of the outputs is

        mean over tokens (max_j x_j/s_j)² · sum_j s_j² |w_j|²
        + sum over rows (max_j w_j s_j)² · sum_j mean (x_j/s_j)²

    but for a constant; in the logarithms of s it is convex, and descended by its gradient. Every
    token counts alike: its inputs are taken over the size of its outputs.

    Args:
        rows: [n, I] float32, inputs.
        weight: [O, I] float32, all rows that read them.
        start: [C], factors to begin from.
        spread: makes factors [I] of channels out of those [C] that can be chosen.
    """
    norms = weight.square().sum(0)
    energy = (rows.square() @ norms).sqrt().clamp_min(1e-20)
    rows = rows / energy[:, None]  # a token is as wrong as its error is large beside its output
    squares = rows.square().mean(0)
    norms = torch.where(squares > 0, norms, 0.0)
    x, w = _some(rows, _SEEN).abs(), _some(weight, 2 * _SEEN).abs()
    every = len(weight) / len(w)

    def expected(exponents: Tensor) -> Tensor:
        s = torch.exp2(spread(exponents))
        of_inputs = (x / s).amax(1).square().mean() * (norms * s.square()).sum()
        of_weights = every * (w * s).amax(1).square().sum() * (squares / s.square()).sum()
        return (of_inputs + of_weights).log()

    exponents = start.log2().clone().requires_grad_()
    descent = torch.optim.Adam([exponents], lr=_RATE)
    best, least = start.log2(), torch.inf
    for _ in range(_STEPS):
        whole = exponents.detach().round()
        if (found := float(expected(whole))) < least:
            best, least = whole, found
        descent.zero_grad()
        expected(exponents).backward()
        descent.step()
    return _powers(best)


def grown(magnitudes: Tensor, error: Callable[[Tensor], float]) -> Tensor:
    """AWQ's factors: magnitudes of inputs to the power of least error, by powers of two: [C].

    Columns of weights whose inputs are large are made larger before they are rounded, so that their
    steps, once divided again, are smaller. The exponent 0, of no factors, is tried first.

    Args:
        magnitudes: [C], of each input channel.
        error: of rounding weights whose input channels are divided by factors [C].
    """
    flat = torch.ones_like(magnitudes)
    tried = (factors(magnitudes, flat, step / _EXPONENTS) for step in range(_EXPONENTS + 1))
    return min(tried, key=error)


def rounding_error(
    weight: Tensor,
    importance: Tensor,
    *,
    bits: int,
    group_size: int,
    sym: bool,
    search: ScaleSearch,
) -> float:
    """The share of a weight [O, I] that rounding to nearest loses, columns weighted by [I]."""
    scale, zero = fit(
        weight, bits=bits, group_size=group_size, sym=sym, search=search, importance=importance
    )
    missed = round_to_nearest(weight, scale, zero, bits=bits, sym=sym).dequantize().sub_(weight)
    lost, whole = ((rows.square() @ importance).sum() for rows in (missed, weight))
    return float(lost / whole) if whole else 0.0


def some_rows(weight: Tensor) -> Tensor:
    """So many rows [n, I] of a weight [O, I], float32, as tell what rounding all of them loses."""
    return _some(weight, _ROWS).float()


def _some(rows: Tensor, count: int) -> Tensor:
    """At most about so many rows, from all over."""
    return rows[:: max(1, len(rows) // count)]


def _exponents(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    alive = (inputs > 0) & (weights > 0)
    exponent = strength * inputs.log2() - (1 - strength) * weights.log2()
    exponent = torch.where(alive, exponent, 0.0)
    mean = exponent.sum() / alive.sum().clamp_min(1)
    return torch.where(alive, exponent - mean, 0.0)


def _powers(exponents: Tensor) -> Tensor:
    return torch.exp2(exponents.round().clamp(-_FURTHEST, _FURTHEST))

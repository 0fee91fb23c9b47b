"""SmoothQuant: move what is hard to round from the inputs of linears into their weights.

Input channel j is divided by s_j and column j of the weights multiplied by it, so the product is
the same; what made the input is divided by s_j beforehand. Here every s_j is a power of two: no
weight and no norm is rounded anew by it, and the model computes, bit for bit, what it did.

Source: Xiao et al. 2023, arXiv:2211.10438, Equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FURTHEST = 10.0  # powers of two from 1: no float16 is lost


def factors(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """By what to divide input channels: powers of two, [I] float32.

    Args:
        inputs: [I], the largest magnitude of each input channel.
        weights: [I], the largest magnitude in each column of the weights that read them.
        strength: 0 makes the columns of the weights alike, 1 the inputs; the paper's alpha.
    """
    alive = (inputs > 0) & (weights > 0)
    exponent = strength * inputs.log2() - (1 - strength) * weights.log2()
    exponent = torch.where(alive, exponent, 0.0)
    exponent -= exponent.sum() / alive.sum().clamp_min(1)
    exponent = exponent.round().clamp(-_FURTHEST, _FURTHEST)
    return torch.where(alive, torch.exp2(exponent), 1.0)

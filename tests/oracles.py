"""Slow, obvious versions in float64, for the kernels to be held against."""

from __future__ import annotations

import torch
from torch import Tensor


def gptq(
    weight: Tensor, damped: Tensor, scale: Tensor, zero: Tensor, bits: int, order: Tensor
) -> Tensor:
    """One column after another, each time inverting anew what is left (OBQ's own form)."""
    W, H = weight.double().clone(), damped.double()
    size = W.shape[1] // scale.shape[1]
    S, Z = (t.double().repeat_interleave(size, 1) for t in (scale, zero))
    codes, left = torch.zeros_like(W), order.tolist()
    while left:
        c = left[0]
        inverse = torch.linalg.inv(H[left][:, left])
        codes[:, c] = torch.round(W[:, c] / S[:, c] + Z[:, c]).clamp(0, 2**bits - 1)
        error = (W[:, c] - (codes[:, c] - Z[:, c]) * S[:, c]) / inverse[0, 0]
        W[:, left] -= error[:, None] * inverse[0][None]
        left = left[1:]
    return codes.to(torch.uint8)


def squared_error(weight: Tensor, dense: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ)."""
    difference = weight.double() - dense.double()
    return float(torch.trace(difference @ hessian.double() @ difference.T))

"""Fit what a mask keeps of a weight to the inputs, all rows at once, by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def refit(
    weight: Tensor, start: Tensor, mask: Tensor, hessian: Tensor, *, iterations: int
) -> Tensor:
    """Move the kept weights towards those that reproduce the outputs of `weight` best.

    Every row has a mask and so a system of equations of its own, [K, K]. None of them is factored:
    one product with the whole Hessian takes all rows a step further. No step raises the error.

    Args:
        weight: W, [O, I] float32: what is to be reproduced.
        start: Z, [O, I] float32: where to begin; only what the mask keeps of it counts.
        mask: [O, I] bool.
        hessian: H, [I, I] float32, damped, so that its diagonal is positive.
        iterations: at most; each costs a product [O, I] x [I, I].

    Returns:
        Z [O, I] float32, zero where the mask is False, with a smaller (W - Z) H (W - Z)ᵀ in each
        row.

    Source: Hestenes and Stiefel 1952, preconditioned by the diagonal; for pruned layers Meng et al.
        2024 (ALPS), arXiv:2406.07831, section 3.2.
    """
    Z = torch.where(mask, start, 0.0).T.contiguous()  # [I, O]: products read rows of H in order
    keep = mask.T.to(Z.dtype).contiguous()
    scale = keep / hessian.diagonal()[:, None]
    residual = (hessian @ (weight.T - Z)).mul_(keep)
    direction = residual * scale
    energy = (residual * direction).sum(0)
    for _ in range(iterations):
        image = (hessian @ direction).mul_(keep)
        step = _ratio(energy, (direction * image).sum(0))
        Z += step * direction
        residual -= step * image
        ahead = residual * scale
        before, energy = energy, (residual * ahead).sum(0)
        direction = direction.mul_(_ratio(energy, before)).add_(ahead)
    return Z.T.contiguous()


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """One over the other by rows, 0 where a row has arrived."""
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), 0.0)

"""Take whole inputs away from a linear, and let those that are left make up for them.

Without the inputs D, the outputs W x come nearest with

    W_K + W_D H_DK (H_KK + λ)⁻¹,    H = E[x xᵀ]

and what is lost is tr(W_D [(H⁻¹)_DD]⁻¹ W_Dᵀ): the exact cost of removing D, updates counted.

Source: Hassibi and Stork 1992 (OBS); one after another: Kurtic et al. 2023 (ZipLM),
arXiv:2302.04089.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.hessian import invert

_STEPS = 32  # in which units are removed; what others cost is known anew after each


def magnitudes(inputs: Tensor, *, unit: int = 1) -> Tensor:
    """How strongly units are driven: mean |x| over time, root of the sum of squares over samples.

    Args:
        inputs: [B, T, I].
        unit: channels that go together.

    Returns:
        [I / unit] float32.

    Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 2.2.
    """
    channels = inputs.float().abs().mean(1)
    return channels.view(len(channels), -1, unit).sum(2).square().sum(0).sqrt()


def cheapest(
    weight: Tensor, inverse: Tensor, keep: int, *, unit: int = 1, metric: Tensor | None = None
) -> Tensor:
    """Choose the units of inputs that are left when those go that cost least, a few at a time.

    Args:
        weight: [O, I].
        inverse: [I, I] float32, of the damped Hessian.
        keep: units that stay.
        unit: neighbouring inputs that go together: the channels of a group of heads.
        metric: [O], how much a squared error of each output counts; all alike by default.

    Returns:
        [keep] int64, ascending.
    """
    W = weight.float() if metric is None else weight.float() * metric.sqrt()[:, None]  # [O, I]
    Hinv = inverse.clone()
    left = torch.arange(W.shape[1] // unit, device=W.device)
    few = max(1, -(-(len(left) - keep) // _STEPS))
    within = torch.arange(unit, device=W.device)
    while len(left) > keep:
        costs = _costs(W, Hinv, left[:, None] * unit + within)
        going = costs.topk(min(few, len(left) - keep), largest=False).indices
        places = (left[going][:, None] * unit + within).flatten()
        update = torch.linalg.solve(Hinv[places[:, None], places], Hinv[places])  # [D, I]
        W = W - W[:, places] @ update
        Hinv = Hinv - Hinv[:, places] @ update
        stay = torch.ones(len(left), dtype=torch.bool, device=W.device)
        stay[going] = False
        left = left[stay]
    return left


def _costs(W: Tensor, Hinv: Tensor, units: Tensor) -> Tensor:
    """tr(W_u [(H⁻¹)_uu]⁻¹ W_uᵀ) of each unit u of `units` [U, unit]: [U]."""
    if units.shape[1] == 1:
        places = units[:, 0]
        return W[:, places].square().sum(0) / Hinv.diagonal()[places]
    parts = Hinv[units[:, :, None], units[:, None, :]]  # [U, unit, unit]
    columns = W[:, units].permute(1, 2, 0)  # [U, unit, O]
    costs: Tensor = (columns * torch.linalg.solve(parts, columns)).sum((1, 2))
    return costs


def refit(
    weight: Tensor,
    hessian: Tensor,
    kept: Tensor,
    *,
    damp_percent: float,
    lacks: Tensor | None = None,
) -> Tensor:
    """The weight on the inputs that are left which comes nearest to what all of them gave.

    Args:
        weight: [O, I].
        hessian: [I, I] float32, mean of x xᵀ, undamped; read.
        kept: [K] int64, the inputs that are left, ascending.
        damp_percent: fraction of the mean diagonal that keeps the weight where it was.
        lacks: [O, I] float32, E[(y - W x) xᵀ] where outputs y are wanted other than W x.

    Returns:
        [O, K] float32.

    Raises:
        SolveError: the Hessian is not positive definite.
    """
    W = weight.float()
    gone = torch.ones(W.shape[1], dtype=torch.bool, device=W.device)
    gone[kept] = False
    missing = W[:, gone] @ hessian[gone][:, kept]  # [O, K]
    if lacks is not None:
        missing = missing + lacks[:, kept]
    damped = invert(hessian[kept[:, None], kept], damp_percent)
    return W[:, kept] + missing @ damped.inverse

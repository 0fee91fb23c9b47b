"""GPTQ for rows that hang together: what an output's error does depends on that of the others.

For a linear's error E = W - Q, a model's divergence is about tr(A E H Eᵀ): H the Hessian of the
inputs, A the second moments of gradients by the outputs. GPTQ takes A for the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.kernels.gptq import gptq, improve
from compress.kernels.hessian import Factor

DAMP_PERCENT = 0.1  # of A: the product of two means is not the mean of the products
SETS = 8  # of rows, every eighth in one: more lower the cost a little and take as many times longer


def two_sided(
    weight: Tensor,
    factor: Factor,
    scale: Tensor,
    zero: Tensor,
    *,
    outputs: Tensor,
    bits: int,
    sweeps: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Round a weight set of rows by set of rows, each making up for the errors of those before it.

    With the errors of some rows fixed, the best error of all others is known in closed form; a set
    is rounded by GPTQ towards it. Afterwards each set is led once more by all others. Within a set
    rows are taken for independent.

    Args:
        weight: [O, I], any float; read, never written.
        factor: of the damped inverse Hessian of its inputs.
        scale: [O, G] float32.
        zero: [O, G] float32, whole numbers.
        outputs: A, [O, O] any float, undamped; only ratios count.
        bits: width of the integer grid.
        sweeps: as in `gptq`.
        mask: as in `gptq`, [O, I].

    Returns:
        Codes [O, I] uint8.

    Source: the objective is that of Tseng et al. 2025 (YAQA), arXiv:2505.22988, who carry errors on
        by both Cholesky factors at once; GPTQ set by set needs no other solver.
    """
    W, A = weight.float(), damped(outputs)
    size = W.shape[1] // scale.shape[1]
    codes = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    error = torch.zeros_like(W)
    every = range(min(SETS, len(W)))
    sets = [torch.arange(first, len(W), SETS, device=W.device) for first in every]

    def settle(rows: Tensor, later: Sequence[Tensor], *, again: bool = False) -> None:
        """Give rows codes: their errors and those of later rows are free, all others fixed."""
        target = W[rows] + _lean(A, error, rows, torch.cat([rows, *later]))
        grid = scale[rows], zero[rows]
        kept = None if mask is None else mask[rows]
        if again:
            found = improve(codes[rows], target, factor, *grid, bits=bits, mask=kept)
        else:
            found = gptq(target, factor, *grid, bits=bits, sweeps=sweeps, mask=kept)
        codes[rows] = found
        steps = found.float().unflatten(1, (-1, size)) - zero[rows, :, None]
        error[rows] = W[rows] - (steps * scale[rows, :, None]).flatten(1)

    for place, rows in enumerate(sets):
        settle(rows, sets[place + 1 :])
    for rows in sets if sweeps else ():
        settle(rows, (), again=True)
    return codes


def damped(outputs: Tensor) -> Tensor:
    """A with its diagonal raised by a share of its mean; that of outputs nobody reads is 1."""
    average = outputs.diagonal().mean()
    if not average > 0:
        return torch.eye(len(outputs), device=outputs.device)
    return outputs.float() + DAMP_PERCENT * average * torch.eye(len(outputs), device=outputs.device)


def _lean(A: Tensor, error: Tensor, rows: Tensor, free: Tensor) -> Tensor:
    """How far rows of Q should lie from W, given the errors [O, I] of all that is not free.

    The free errors that cost least are -A_ff⁻¹ A_fo E_o; `free` begins with `rows`.
    """
    fixed = torch.ones(len(A), dtype=torch.bool, device=A.device)
    fixed[free] = False
    if not fixed.any():
        return torch.zeros_like(error[rows])
    pull = A[free][:, fixed] @ error[fixed]
    lean: Tensor = torch.linalg.solve(A[free][:, free], pull)
    return lean[: len(rows)]

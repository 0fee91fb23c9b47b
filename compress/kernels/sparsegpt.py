"""SparseGPT: prune a weight column by column, each column's error carried by those still open."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.hessian import Factor
from compress.kernels.masks import best, share


def sparsegpt(
    weight: Tensor, factor: Factor, *, count: int, of: int | None = None, column_block: int = 128
) -> tuple[Tensor, Tensor]:
    """Prune a weight column by column, spreading each column's error over those still open.

    Which weights go is decided a block of columns at a time, when the errors of all columns before
    it have arrived: those whose loss costs least, w² / U_cc², whichever row they are in. A pattern
    n:m is decided for m columns at a time.

    Args:
        weight: [O, I], any float; read, never written. Dead columns are taken as zero.
        factor: of the damped inverse Hessian of its inputs, columns in their own order.
        count: how many weights stay.
        of: of so many neighbours in a row; None for the whole matrix. Must divide I.
        column_block: columns updated at once, and masked at once where there is no `of`.

    Returns:
        The weight [O, I] float32, zero where it is pruned, and the mask [O, I] bool, True where it
        stays.

    Source: Frantar and Alistarh 2023, arXiv:2301.00774, Algorithm 1.
    """
    U, columns = factor.upper, weight.shape[1]
    rest = weight.float().masked_fill(factor.dead, 0.0).T.contiguous()  # [I, O]
    mask = torch.empty(rest.shape, dtype=torch.bool, device=rest.device)
    at_once = of or column_block
    column_block = max(column_block - column_block % at_once, at_once)
    for start in range(0, columns, column_block):
        stop = min(start + column_block, columns)
        block, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        for j, c in enumerate(range(start, stop)):
            if j % at_once == 0:
                end = min(c + at_once, stop)
                score = (block[j : j + end - c] / U.diagonal()[c:end, None]).square_().T
                here = count if of else share(count, columns, c, end)
                mask[c:end] = best(score, here, of).T
            errors[j] = block[j].masked_fill(mask[c], 0.0) / U[c, c]
            block[j].masked_fill_(~mask[c], 0.0)
            block[j + 1 :].addr_(U[c, c + 1 : stop], errors[j], alpha=-1)
        rest[stop:].addmm_(U[start:stop, stop:].T, errors, alpha=-1)
    return rest.T.contiguous(), mask.T.contiguous()

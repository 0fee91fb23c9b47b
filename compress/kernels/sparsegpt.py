"""SparseGPT: prune a weight column by column, each column's error carried by those still open."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.hessian import Factor
from compress.kernels.masks import best, share


def sparsegpt(
    weight: Tensor, factor: Factor, *, count: int, of: int, column_block: int = 128
) -> tuple[Tensor, Tensor]:
    """Prune a weight column by column, spreading each column's error over those still open.

    Which weights go is decided a block of columns at a time, when the errors of all columns before
    it have arrived: those whose loss costs least, w² / U_cc². With `of` up to `column_block` it is
    decided for `of` neighbours at a time. Unlike in the authors' code rows do not compete with each
    other: every row keeps as much, and rows may be solved apart.

    Args:
        weight: [O, I], any float; read, never written. Dead columns are taken as zero.
        factor: of the damped inverse Hessian of its inputs, columns in their own order.
        count: how many weights stay.
        of: of so many neighbours in a row; I for all of a row. Must divide I.
        column_block: columns updated at once, and, where `of` is larger, masked at once.

    Returns:
        The weight [O, I] float32, zero where it is pruned, and the mask [O, I] bool, True where it
        stays.

    Source: Frantar and Alistarh 2023, arXiv:2301.00774, Algorithm 1.
    """
    U, columns = factor.upper, weight.shape[1]
    rest = weight.float().masked_fill(factor.dead, 0.0).T.contiguous()  # [I, O]
    mask = torch.empty(rest.shape, dtype=torch.bool, device=rest.device)
    at_once = of if of <= column_block else column_block
    column_block -= column_block % at_once
    for start in range(0, columns, column_block):
        stop = min(start + column_block, columns)
        block, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        for j, c in enumerate(range(start, stop)):
            if j % at_once == 0:
                end = min(c + at_once, stop)
                score = (block[j : j + end - c] / U.diagonal()[c:end, None]).square_().T
                mask[c:end] = best(score, share(count, of, c, end), end - c).T
            errors[j] = block[j].masked_fill(mask[c], 0.0) / U[c, c]
            block[j].masked_fill_(~mask[c], 0.0)
            block[j + 1 :].addr_(U[c, c + 1 : stop], errors[j], alpha=-1)
        rest[stop:].addmm_(U[start:stop, stop:].T, errors, alpha=-1)
    return rest.T.contiguous(), mask.T.contiguous()

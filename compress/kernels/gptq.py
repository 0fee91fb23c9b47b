"""GPTQ: round a weight column by column, each column's error carried by those not yet rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.grid import round_codes
from compress.kernels.hessian import Inverse


def gptq(
    weight: Tensor,
    inverse: Inverse,
    scale: Tensor,
    zero: Tensor,
    *,
    bits: int,
    desc_act: bool = True,
    sweeps: int = 1,
    column_block: int = 128,
) -> Tensor:
    """Round a weight column by column, spreading each column's error over those not yet rounded.

    Scales are fixed before (static groups), so act order costs nothing in the layout. Then each
    sweep visits every column once more and gives it the best code while all others stay: it never
    raises the damped error.

    Args:
        weight: [O, I], any float; read, never written. Dead columns are taken as zero.
        inverse: the damped Hessian of its inputs and the inverse of that, [I, I].
        scale: [O, G] float32; column i belongs to group i // (I / G).
        zero: [O, G] float32, whole numbers.
        bits: width of the integer grid, 2 to 8.
        desc_act: visit columns by falling diagonal of the Hessian.
        sweeps: rounds of coordinate descent afterwards.
        column_block: columns updated at once; changes speed, never the result.

    Returns:
        Codes [O, I] uint8.

    Source: Frantar et al. 2023, arXiv:2210.17323, Algorithm 1; act order after the authors' code;
        the sweeps after Behdin et al. 2023 (QuantEase), arXiv:2309.01885.
    """
    W = weight.float().masked_fill(inverse.dead, 0.0).T  # [I, O]
    size = W.shape[0] // scale.shape[1]
    S, Z = (t.repeat_interleave(size, 1).T.contiguous() for t in (scale, zero))  # [I, O]
    order = torch.arange(W.shape[0], device=W.device)
    if desc_act:
        order = torch.argsort(inverse.damped.diagonal(), descending=True, stable=True)
    codes = torch.empty_like(S)
    codes[order] = _round_in_order(
        W[order], inverse.factor(order), S[order], Z[order], bits, column_block
    )
    for _ in range(sweeps):
        _sweep(codes, W, inverse.damped, S, Z, bits=bits, column_block=column_block)
    return codes.T.byte().contiguous()


def _round_in_order(
    rest: Tensor, U: Tensor, S: Tensor, Z: Tensor, bits: int, column_block: int
) -> Tensor:
    """Algorithm 1 on [I, O], so that each step touches memory in order; writes `rest`."""
    columns = rest.shape[0]
    Q = torch.empty_like(rest)
    for start in range(0, columns, column_block):
        stop = min(start + column_block, columns)
        block, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        for j, c in enumerate(range(start, stop)):
            Q[c] = round_codes(block[j], S[c], Z[c], bits)
            errors[j] = (block[j] - (Q[c] - Z[c]) * S[c]) / U[c, c]
            block[j + 1 :].addr_(U[c, c + 1 : stop], errors[j], alpha=-1)
        rest[stop:].addmm_(U[start:stop, stop:].T, errors, alpha=-1)
    return Q


def _sweep(
    codes: Tensor, W: Tensor, H: Tensor, S: Tensor, Z: Tensor, *, bits: int, column_block: int
) -> None:
    """Give each column its best codes while all others stay, one by one; writes codes [I, O]."""
    gradient = H @ (W - (codes - Z) * S)  # [I, O], half the gradient of the error
    curvature = H.diagonal()
    for start in range(0, W.shape[0], column_block):
        stop = min(start + column_block, W.shape[0])
        block, moved = gradient[start:stop].clone(), torch.empty_like(gradient[start:stop])
        for j, c in enumerate(range(start, stop)):
            wanted = (codes[c] - Z[c]) * S[c] + block[j] / curvature[c]
            best = round_codes(wanted, S[c], Z[c], bits)
            moved[j] = (codes[c] - best) * S[c]
            codes[c] = best
            block.addr_(H[start:stop, c], moved[j])
        gradient.addmm_(H[:, start:stop], moved)

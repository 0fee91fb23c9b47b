"""GPTQ: round a weight column by column, each column's error carried by those not yet rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.grid import round_codes
from compress.kernels.hessian import Factor


def gptq(
    weight: Tensor,
    factor: Factor,
    scale: Tensor,
    zero: Tensor,
    *,
    bits: int,
    sweeps: int = 1,
    mask: Tensor | None = None,
    column_block: int = 128,
) -> Tensor:
    """Round a weight column by column, spreading each column's error over those not yet rounded.

    Scales are fixed before (static groups), so the order of columns costs nothing in the layout.
    Then each sweep visits every column once more and gives it the best code while all others stay:
    it never raises the damped error. Two copies of the weight are held at a time.

    Args:
        weight: [O, I], any float; read, never written. Dead columns are taken as zero.
        factor: of the damped inverse Hessian of its inputs, in the order of visit.
        scale: [O, G] float32; column i belongs to group i // (I / G).
        zero: [O, G] float32, whole numbers.
        bits: width of the integer grid, 2 to 8.
        sweeps: rounds of coordinate descent afterwards.
        mask: [O, I] bool: where it is False the code is the zero point, and what that loses is
            carried on as rounding errors are. None where nothing is pruned.
        column_block: columns updated at once; changes speed, never the result.

    Returns:
        Codes [O, I] uint8.

    Source: Frantar et al. 2023, arXiv:2210.17323, Algorithm 1; act order after the authors' code;
        the sweeps after Behdin et al. 2023 (QuantEase), arXiv:2309.01885; pruning in the same loop
        after Frantar and Alistarh 2023 (SparseGPT), arXiv:2301.00774, section 3.5.
    """
    rows, columns = weight.shape
    kept = None if mask is None else mask.T.contiguous()
    grid = _Grid(scale.T.contiguous(), zero.T.contiguous(), columns // scale.shape[1], bits, kept)
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    _round_in_order(codes, _living(weight, factor)[factor.order], factor, grid, column_block)
    for _ in range(sweeps):
        _improve(codes, weight, factor, grid, column_block)
    return codes.T.contiguous()


def improve(
    codes: Tensor,
    weight: Tensor,
    factor: Factor,
    scale: Tensor,
    zero: Tensor,
    *,
    bits: int,
    mask: Tensor | None = None,
) -> Tensor:
    """One more sweep over codes [O, I] that stand for a weight; the rest as for `gptq`."""
    kept = None if mask is None else mask.T.contiguous()
    size = weight.shape[1] // scale.shape[1]
    grid = _Grid(scale.T.contiguous(), zero.T.contiguous(), size, bits, kept)
    found = codes.T.clone(memory_format=torch.contiguous_format)
    _improve(found, weight, factor, grid, 128)
    return found.T.contiguous()


def _improve(codes: Tensor, weight: Tensor, factor: Factor, grid: _Grid, column_block: int) -> None:
    """Visit every column of codes [I, O] once more; writes them."""
    gradient = factor.damped @ _error(_living(weight, factor), codes, grid)
    _sweep(codes, gradient, factor.damped, grid, column_block)


@dataclass(frozen=True)
class _Grid:
    """The scales and zeros [G, O] of a matrix whose columns are rows here; `size` share one."""

    scale: Tensor
    zero: Tensor
    size: int
    bits: int
    kept: Tensor | None = None  # [I, O] bool; None: all

    def nearest(self, weight: Tensor, column: int) -> Tensor:
        """The best codes [O] of one column of weights, as floats."""
        scale, zero = self.of(column)
        found = round_codes(weight, scale, zero, self.bits)
        return found if self.kept is None else torch.where(self.kept[column], found, zero)

    def of(self, column: int) -> tuple[Tensor, Tensor]:
        """Scale and zero of one column, [O] each."""
        return self.scale[column // self.size], self.zero[column // self.size]


def _living(weight: Tensor, factor: Factor) -> Tensor:
    """A copy of the weight with dead columns zero, turned: [I, O]."""
    return weight.float().masked_fill(factor.dead, 0.0).T


def _round_in_order(
    codes: Tensor, rest: Tensor, factor: Factor, grid: _Grid, column_block: int
) -> None:
    """Algorithm 1 on [I, O], so that each step touches memory in order; writes `codes`, `rest`."""
    U, order, columns = factor.upper, factor.order.tolist(), rest.shape[0]
    for start in range(0, columns, column_block):
        stop = min(start + column_block, columns)
        block, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        for j, c in enumerate(range(start, stop)):
            scale, zero = grid.of(order[c])
            best = grid.nearest(block[j], order[c])
            codes[order[c]] = best
            errors[j] = (block[j] - (best - zero) * scale) / U[c, c]
            block[j + 1 :].addr_(U[c, c + 1 : stop], errors[j], alpha=-1)
        rest[stop:].addmm_(U[start:stop, stop:].T, errors, alpha=-1)


def _error(W: Tensor, codes: Tensor, grid: _Grid) -> Tensor:
    """W [I, O] less what its codes stand for; W becomes it."""
    for start in range(0, W.shape[0], grid.size):
        scale, zero = grid.of(start)
        W[start : start + grid.size] -= (codes[start : start + grid.size] - zero) * scale
    return W


def _sweep(codes: Tensor, gradient: Tensor, H: Tensor, grid: _Grid, column_block: int) -> None:
    """Give each column its best codes while all others stay, one by one; writes codes [I, O].

    `gradient` [I, O] is half that of the error, H times it; written too.
    """
    curvature = H.diagonal()
    for start in range(0, len(codes), column_block):
        stop = min(start + column_block, len(codes))
        block, moved = gradient[start:stop].clone(), torch.empty_like(gradient[start:stop])
        for j, c in enumerate(range(start, stop)):
            scale, zero = grid.of(c)
            here = codes[c].float()
            wanted = (here - zero) * scale + block[j] / curvature[c]
            best = grid.nearest(wanted, c)
            moved[j] = (here - best) * scale
            codes[c] = best
            block.addr_(H[start:stop, c], moved[j])
        gradient.addmm_(H[:, start:stop], moved)

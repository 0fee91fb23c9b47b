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


def small_floats(exponent_bits: int, mantissa_bits: int) -> list[float]:
    """What every code of a small float stands for, from the definition; NaN where all ones are."""
    bits, bias = 1 + exponent_bits + mantissa_bits, 2 ** (exponent_bits - 1) - 1
    found = []
    for code in range(2**bits):
        sign = -1.0 if code >> (bits - 1) else 1.0
        exponent = code >> mantissa_bits & (2**exponent_bits - 1)
        fraction = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
        value = (
            fraction * 2.0 ** (1 - bias)
            if exponent == 0
            else (1 + fraction) * 2.0 ** (exponent - bias)
        )
        nan = bits == 8 and code & 127 == 127  # e2m1 has none
        found.append(float("nan") if nan else sign * value)
    return found


def nearest_code(value: float, numbers: list[float]) -> int:
    """The code whose number is nearest, by trying all; of two, the even one; never that of -0."""
    codes = [c for c, number in enumerate(numbers) if number == number and (number or c == 0)]
    return min(codes, key=lambda code: (abs(numbers[code] - value), code % 2))


def sparsegpt(
    weight: Tensor, damped: Tensor, count: int, of: int | None, column_block: int
) -> tuple[Tensor, Tensor]:
    """Column after column, each time inverting anew what is left; masks as they come due."""
    W, H = weight.double().clone(), damped.double()
    columns, at_once = W.shape[1], of or column_block
    mask = torch.zeros(W.shape, dtype=torch.bool)
    for c in range(columns):
        left = list(range(c, columns))
        inverse = torch.linalg.inv(H[left][:, left])
        if c % at_once == 0:
            end = min(c + at_once, columns)
            losses = [torch.linalg.inv(H[j:, j:])[0, 0] for j in range(c, end)]
            costs = torch.stack([W[:, c + j] ** 2 / loss for j, loss in enumerate(losses)], dim=1)
            here = count if of else end * count // columns - c * count // columns
            for first, rows in enumerate([costs] if of is None else costs.split(1)):
                for place in rows.flatten().argsort(descending=True)[:here].tolist():
                    mask[first + place // (end - c), c + place % (end - c)] = True
        error = torch.where(mask[:, c], 0.0, W[:, c]) / inverse[0, 0]
        W[:, left] -= error[:, None] * inverse[0][None]
        W[~mask[:, c], c] = 0.0
    return W, mask


def admm(weight: Tensor, damped: Tensor, count: int, schedule: list[int]) -> tuple[Tensor, Tensor]:
    """The split as it is written in papers, with X, Z and U apart; so many stay in each round."""
    H = damped.double()
    scale = H.diagonal().sqrt()
    W, A = weight.double() * scale, H / scale[:, None] / scale
    X, U = W.clone(), torch.zeros_like(W)
    for staying in [*schedule, count]:
        kept = (X + U).abs().flatten().argsort(descending=True)[:staying]
        mask = torch.zeros(W.numel(), dtype=torch.bool).index_fill(0, kept, True).view(W.shape)
        Z = torch.where(mask, X + U, 0.0)
        U = X + U - Z
        X = torch.linalg.solve(A + torch.eye(len(A)), (W @ A + Z - U).T).T
    return Z / scale, mask


def least_squares(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """The kept weights of each row that reproduce W x best: its normal equations, solved."""
    W, H, found = weight.double(), hessian.double(), torch.zeros(weight.shape, dtype=torch.float64)
    for row, keep in enumerate(mask):
        wanted = H[keep] @ W[row]
        found[row, keep] = torch.linalg.solve(H[keep][:, keep], wanted)
    return found

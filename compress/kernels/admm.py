"""ADMM: mask and weights found together, a little more pruned each round, all columns at once."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.hessian import leaning_inverse
from compress.kernels.masks import best

_RAMP = 0.75  # of the rounds raise the sparsity, the others leave it


def admm(
    weight: Tensor, hessian: Tensor, *, count: int, of: int | None = None, rounds: int = 10
) -> tuple[Tensor, Tensor]:
    """Split the weight in two: one that reproduces the outputs, one that is sparse; draw them near.

    Each round solves for the first in one product with a fixed inverse, drawn to the second as it
    was; prunes the sum of it and of what pruning has taken from it so far; and takes the rest along
    as the next round's debt. Columns are scaled to inputs of equal size, so that a weight counts
    for what it adds to its output. The sparsity rises by a cubic schedule: weights that go early
    are made up for before the others are judged.

    Args:
        weight: [O, I] float32: what is to be reproduced; read, never written.
        hessian: [I, I] float32, damped.
        count: how many weights stay.
        of: of so many neighbours in a row; None for the whole matrix. Must divide I.
        rounds: of which the first three quarters prune more.

    Returns:
        The weight [O, I] float32, zero where it is pruned, and the mask [O, I] bool, True where it
        stays.

    Source: Boža 2024, arXiv:2401.02938, Algorithm 2; the split after Boyd et al. 2011.
    """
    norms = hessian.diagonal().sqrt()
    H, inverse = leaning_inverse(hessian)
    wanted = (weight * norms) @ H
    X, debt = weight * norms, torch.zeros_like(weight)
    for number in range(1, rounds + 1):
        X += debt
        mask = _rising(X.square(), count, of, min(1.0, number / (_RAMP * rounds)))
        debt = X.masked_fill(mask, 0.0)
        X.sub_(debt, alpha=2).add_(wanted)  # what is sparse, less the debt
        X = X @ inverse
    X += debt
    mask = best(X.square(), count, of)
    return X.masked_fill_(~mask, 0.0).div_(norms), mask


def _rising(score: Tensor, count: int, of: int | None, part: float) -> Tensor:
    """The mask on its way: weights that will stay in any case, and the best of the others."""
    if part >= 1:
        return best(score, count, of)
    whole = score.numel()
    goal = count if of is None else whole // of * count
    staying = goal + round((whole - goal) * (1 - part) ** 3)
    if of is not None:
        score = score.masked_fill(best(score, count, of), torch.inf)
    return best(score, staying)

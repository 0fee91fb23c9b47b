"""Which weights of a matrix stay: so many of all, or so many of every run of neighbours in a row.

That number is exact, whatever the scores: what a pruned matrix takes on disk is known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 2.0**-24  # that float16 holds; bfloat16 and float32 do, too


def best(score: Tensor, count: int, of: int | None = None) -> Tensor:
    """Keep the `count` highest of all, or of every `of` neighbours in a row.

    Args:
        score: [O, I], any float; of equal scores any may stay.
        count: how many stay.
        of: neighbouring columns that compete; must divide I. I itself: all of a row. None: all
            weights compete.

    Returns:
        [O, I] bool, True where a weight stays.
    """
    if of is None:
        return _best_of_all(score, count)
    groups = score.reshape(len(score), -1, of)
    chosen = groups.topk(count, dim=2, sorted=False).indices
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(2, chosen, value=True).view(score.shape)


def _best_of_all(score: Tensor, count: int) -> Tensor:
    """By the score that `count` others reach: selecting costs less than sorting."""
    if not 0 < count < score.numel():
        return torch.full(score.shape, count > 0, device=score.device)
    flat = score.flatten()
    least = flat.kthvalue(len(flat) - count + 1).values
    mask = flat > least
    ties = (flat == least).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(score.shape)


def share(count: int, of: int, start: int, stop: int) -> int:
    """How many of the places `start` to `stop` stay where `count` of `of` do, evenly spread.

    Pieces side by side add up to what they are together.
    """
    return stop * count // of - start * count // of


def pruned(weight: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight [O, I] in the dtype in which it is stored, zero exactly where `mask` is False.

    The mask of a stored matrix is where it is not zero, so what stays and came out as zero becomes
    the smallest number that every float holds, 2^-24.
    """
    stored = weight.to(dtype)
    stored = stored.masked_fill(mask & (stored == 0), _SMALLEST)
    return stored.masked_fill_(~mask, 0.0)

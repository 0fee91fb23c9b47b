"""Which weights of a matrix stay: the same number of every run of neighbours in a row.

That number is exact, whatever the scores: what a pruned matrix takes on disk is known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 2.0**-24  # that float16 holds; bfloat16 and float32 do, too


def best(score: Tensor, count: int, of: int) -> Tensor:
    """Keep the `count` highest of every `of` neighbours in a row.

    Args:
        score: [O, I], any float.
        count: how many stay, from 0 to `of`.
        of: neighbouring columns that compete; must divide I. I itself: all of a row.

    Returns:
        [O, I] bool, True where a weight stays. Of equal scores any may stay.
    """
    groups = score.reshape(len(score), -1, of)
    chosen = groups.topk(count, dim=2, sorted=False).indices
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(2, chosen, value=True).view(score.shape)


def share(count: int, of: int, start: int, stop: int) -> int:
    """How many of columns `start` to `stop` stay where `count` of `of` do, evenly spread.

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

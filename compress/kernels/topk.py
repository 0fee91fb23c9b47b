"""The likeliest tokens of a distribution and the exact mass of all others, and a KL from them.

With all but the likeliest k tokens taken for one, KL(p || q) falls: what it loses is the mass of
the tail times the KL between what both say inside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopK:
    """What is kept of the distributions of N tokens."""

    ids: Tensor  # [N, k] int32, the likeliest first
    log_probs: Tensor  # [N, k] float32, of the softmax over the whole vocabulary
    log_tail: Tensor  # [N] float32, log of the mass of all others; -inf where there is none


def keep(logits: Tensor, k: int) -> TopK:
    """Keep the k likeliest tokens of each distribution.

    Args:
        logits: [N, V]; summed in float64, so that a tail of 1e-12 is that, and not what is left of
            one after a subtraction.
        k: from 1 to V.
    """
    exact = logits.double()
    best = exact.topk(k, dim=-1)
    whole = exact.logsumexp(-1)
    rest = exact.scatter(1, best.indices, -torch.inf).logsumexp(-1)
    return TopK(
        best.indices.to(torch.int32),
        (best.values - whole[:, None]).float(),
        (rest - whole).float(),
    )


def divergence(kept: TopK, logits: Tensor) -> Tensor:
    """KL(teacher || student) of each token with everything in the tail taken for one token, nats.

    Never above the KL over the whole vocabulary, and equal where k is all of it or where both share
    the tail out alike.

    Args:
        kept: of the teacher.
        logits: [N, V] of the student, float32 or float64; gradients reach them.

    Returns:
        [N], in their dtype.
    """
    ids = kept.ids.long()
    whole = logits.logsumexp(-1)
    log_q = logits.gather(1, ids) - whole[:, None]
    log_p = kept.log_probs.to(logits.dtype)
    found = (log_p.exp() * (log_p - log_q)).sum(-1)
    tail = kept.log_tail.to(logits.dtype)
    if ids.shape[1] == logits.shape[1]:
        return found  # there is no tail
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - whole
    return found + torch.where(tail == -torch.inf, 0.0, tail.exp() * (tail - rest))

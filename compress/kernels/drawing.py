"""One token for each row of logits, from one number a row."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn(
    logits: Tensor, levels: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Draw one token a row, by inverting its distribution: torch.multinomial takes a number a word.

    Args:
        logits: [B, V] float32.
        levels: [B], uniform in [0, 1); the same draw the same token.
        temperature: divides the logits.
        top_k: draw among the k likeliest; 0 among all.
        top_p: of what is left, among the fewest that hold this share of it together.

    Returns:
        [B] int64.
    """
    scores = logits / temperature
    if top_k:
        least = scores.topk(min(top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares = scores.softmax(-1)
    if top_p < 1:
        shares = _nucleus(shares, top_p)
    reached = shares.cumsum(-1)
    wanted = levels[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True).clamp(max=scores.shape[1] - 1)[:, 0]


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Shares [B, V] with zeros for all but the fewest that hold `top_p` together."""
    falling, order = shares.sort(dim=-1, descending=True, stable=True)
    falling[falling.cumsum(-1) - falling >= top_p] = 0  # what lies before it holds enough
    return torch.zeros_like(shares).scatter_(1, order, falling)

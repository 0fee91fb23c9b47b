"""Causal attention to keys and values in pages, by torch: what kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.runtime.batch import Batch
from compress.runtime.linear import FEW_ROWS
from compress.runtime.pages import Pages

_CHUNK = 128  # tokens whose scores are held at once


def paged_attention(
    queries: Tensor, layer: int, pages: Pages, batch: Batch, window: int | None, cap: float | None
) -> Tensor:
    """Causal attention of queries [N, H, D] to keys and values in pages, theirs too: [N, H·D].

    Each sees `window` keys of its request, itself included, or all. Scores are bent towards no more
    than `cap`. Values that are codes whose steps all tokens share are still to be scaled, see
    `Pages.steps`.
    """
    if queries.is_cuda and len(queries) <= FEW_ROWS:
        from compress.runtime.triton import attention

        if attention.refusal(pages) is None:
            return attention.paged_attention(queries, layer, pages, batch, window, cap)
    starts, mixed = batch.starts.tolist(), []
    for request, tokens in enumerate(batch.lengths.tolist()):
        rows = queries[starts[request] : starts[request + 1]].transpose(0, 1)
        table = batch.tables[request]
        keys, values = (half.read(layer, table, tokens) for half in (pages.keys, pages.values))
        mixed.append(attend(rows, keys, values, window, cap))
    return torch.cat(mixed)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, window: int | None, cap: float | None
) -> Tensor:
    """Queries [H, T, D] of the last T of S positions meet keys and values [KV, S, D]: [T, H·D].

    Query head h reads key head h // (H / KV). Scores are float32, by products of few rows: torch's
    own fused attention takes three times as long on a CPU, in bfloat16 and in float32.
    """
    heads, tokens, width = queries.shape
    seen = keys.shape[1] - tokens
    groups = queries.float().unflatten(0, (len(keys), -1)) / width**0.5  # [KV, H / KV, T, D]
    columns, mixed = keys.float().transpose(1, 2), []
    for start in range(0, tokens, _CHUNK):
        part = groups[:, :, start : start + _CHUNK]
        stop = seen + start + part.shape[2]  # no key behind it is seen, nor one before `first`
        first = 0 if window is None else max(0, seen + start + 1 - window)
        scores = part.flatten(1, 2) @ columns[:, :, first:stop]
        scores = scores.unflatten(1, part.shape[1:3])
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        hidden = ~visible(part.shape[2], stop, window, scores.device)[:, first:]
        scores += torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, -torch.inf)
        shares = scores.softmax(-1).to(values.dtype).flatten(1, 2)
        mixed.append((shares @ values[:, first:stop]).unflatten(1, part.shape[1:3]))
    return torch.cat(mixed, dim=2).flatten(0, 1).transpose(0, 1).reshape(tokens, heads * width)


def visible(
    tokens: int, total: int, window: int | None, device: torch.device | None = None
) -> Tensor:
    """Which of `total` keys each of the last `tokens` positions sees, [T, S] bool."""
    key = torch.arange(total, device=device)
    query = key[total - tokens :, None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)

"""Causal attention to keys and values in pages, by torch: what kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.runtime.batch import Batch
from compress.runtime.linear import FEW_ROWS
from compress.runtime.pages import Pages

_CHUNK = 128  # tokens whose scores are held at once


def paged_attention(
    queries: Tensor,
    layer: int,
    pages: Pages,
    batch: Batch,
    window: int | None,
    cap: float | None = None,
) -> Tensor:
    """Causal attention of each token to those of its request up to itself, read from pages.

    Args:
        queries: [N, H, D].
        layer: whose keys and values are read.
        pages: where they are, those of the queries' own tokens too.
        batch: which rows belong to which request, and where its tokens lie.
        window: each query sees this many keys, itself included; None for all.
        cap: scores are bent towards no more than this; None: they are not.

    Returns:
        [N, H·D], of codes whose steps all tokens share: still to be scaled, see `Pages.steps`.
    """
    if queries.is_cuda and len(queries) <= FEW_ROWS:
        from compress.runtime.triton import attention

        if attention.refusal(pages) is None:
            return attention.paged_attention(queries, layer, pages, batch, window, cap)
    starts, lengths = batch.starts.tolist(), batch.lengths.tolist()
    mixed = []
    for request, tokens in enumerate(lengths):
        rows = queries[starts[request] : starts[request + 1]].transpose(0, 1)
        keys, values = (
            half.read(layer, batch.tables[request], tokens) for half in (pages.keys, pages.values)
        )
        mixed.append(attend(rows, keys, values, window, cap))
    return torch.cat(mixed)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, window: int | None, cap: float | None = None
) -> Tensor:
    """Causal attention with grouped queries; the queries are the last T of S positions.

    Args:
        queries: [H, T, D].
        keys: [KV, S, D]; query head h reads key head h // (H / KV).
        values: [KV, S, D].
        window: each query sees this many keys, itself included; None for all.
        cap: scores are bent towards no more than this; None: they are not.

    Scores are float32, by products of few rows: torch's own fused attention takes three times as
    long on a CPU, in bfloat16 and in float32.

    Returns:
        [T, H·D].
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
        scores += _hidden(part.shape[2], first, stop, window, scores.device)
        shares = scores.softmax(-1).to(values.dtype).flatten(1, 2)
        mixed.append((shares @ values[:, first:stop]).unflatten(1, part.shape[1:3]))
    return torch.cat(mixed, dim=2).flatten(0, 1).transpose(0, 1).reshape(tokens, heads * width)


def _hidden(tokens: int, first: int, stop: int, window: int | None, device: torch.device) -> Tensor:
    """What is added to scores of keys from `first`, for the tokens before `stop`: 0 or -∞."""
    seen = visible(tokens, stop, window, device)[:, first:]
    return torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)


def visible(
    tokens: int, total: int, window: int | None, device: torch.device | None = None
) -> Tensor:
    """Which of `total` keys each of the last `tokens` positions sees, [T, S] bool."""
    key = torch.arange(total, device=device)
    query = key[total - tokens :, None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)

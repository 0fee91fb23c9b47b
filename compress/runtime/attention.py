"""Causal attention to keys and values that lie in pages, by torch: what kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from compress.runtime.batch import Batch
from compress.runtime.pages import Pages


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

    Returns:
        [T, H·D].
    """
    heads, tokens, width = queries.shape
    kv_heads, total, _ = keys.shape
    if cap is not None:
        return _capped(queries, keys, values, visible(tokens, total, window), cap)
    if tokens == 1:
        # No mask: the queries of a group can stand as rows of one product, 3 to 7 times faster.
        first = 0 if window is None else max(0, total - window)
        rows = queries.reshape(1, kv_heads, -1, width)
        keys, values = keys[None, :, first:], values[None, :, first:]
        return scaled_dot_product_attention(rows, keys, values).reshape(1, -1)
    plain = tokens == total and (window is None or tokens <= window)
    mask = None if plain else visible(tokens, total, window)
    out = scaled_dot_product_attention(
        queries[None], keys[None], values[None], mask, is_causal=plain, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(tokens, heads * width)


def visible(tokens: int, total: int, window: int | None) -> Tensor:
    """Which of `total` keys each of the last `tokens` positions sees, [T, S] bool."""
    key, query = torch.arange(total), torch.arange(total - tokens, total)[:, None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def _capped(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor, cap: float) -> Tensor:
    """Attention whose scores are cap · tanh(score / cap)."""
    heads, tokens, width = queries.shape
    groups = queries.unflatten(0, (len(keys), -1))  # [KV, H / KV, T, D]
    scores = (groups @ keys[:, None].transpose(-1, -2)).float() / width**0.5
    bent = (cap * torch.tanh(scores / cap)).masked_fill(~seen, -torch.inf)
    mixed = bent.softmax(-1).to(values.dtype) @ values[:, None]
    return mixed.flatten(0, 1).transpose(0, 1).reshape(tokens, heads * width)

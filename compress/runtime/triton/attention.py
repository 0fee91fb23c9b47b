"""Attention of a few tokens to keys and values in pages, read where they lie.

A program follows one token's table of pages for the query heads that share a key head, with a
running softmax: scores of a page at a time, nothing gathered.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.runtime.batch import Batch
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.packed import LANES
from compress.runtime.pages import Half, Pages

_LEAST = 16  # rows and columns that a product of tensor cores wants


@triton.jit
def _attend(
    queries, keys, values, key_steps, value_steps, tables, owners, positions, mixed,
    heads, kv_heads, width, table_width, key_words, value_blocks, scale, cap, window,
    group: tl.constexpr, groups: tl.constexpr, wide: tl.constexpr, page_tokens: tl.constexpr,
    lanes: tl.constexpr, each: tl.constexpr, coded: tl.constexpr, stepped: tl.constexpr,
    capped: tl.constexpr, windowed: tl.constexpr, floats: tl.constexpr,
):  # fmt: skip
    """Mixed [N, H·D] of one token (program 0) and one key head (program 1)."""
    row, head = tl.program_id(0), tl.program_id(1)
    owner, last = tl.load(owners + row), tl.load(positions + row).to(tl.int32)
    query, channel, token = tl.arange(0, groups), tl.arange(0, wide), tl.arange(0, page_tokens)
    inside = channel < width
    where = (row * heads + head * group + query)[:, None] * width + channel[None, :]
    own = (query < group)[:, None] & inside[None, :]
    q = tl.load(queries + where, mask=own, other=0.0).to(tl.float32) * scale
    # where numbers lie in words of four bytes, see Half
    key_at = (token // lanes * key_words * lanes * each + token % lanes * each)[None, :]
    key_at += (channel // each * lanes * each + channel % each)[:, None]
    value_at = (token // each * lanes * each + token % each)[:, None]
    value_at += (channel // lanes * page_tokens * lanes + channel % lanes * each)[None, :]
    first = 0
    if windowed:
        first = tl.maximum(last + 1 - window, 0) // page_tokens
    most = tl.full((groups,), float("-inf"), tl.float32)
    total = tl.zeros((groups,), tl.float32)
    sums = tl.zeros((groups, wide), tl.float32)
    for number in range(first, last // page_tokens + 1):
        page = tl.load(tables + owner * table_width + number).to(tl.int64) * kv_heads + head
        at = number * page_tokens + token
        seen = at <= last
        if windowed:
            seen = seen & (at > last - window)
        k = tl.load(
            keys + page * (page_tokens * key_words * each) + key_at,
            mask=inside[:, None] & seen[None, :], other=0,
        )  # fmt: skip
        v = tl.load(
            values + page * (value_blocks * page_tokens * lanes) + value_at,
            mask=seen[:, None] & inside[None, :], other=0,
        )  # fmt: skip
        if coded:  # bytes with 128 added; what a mask left out meets zeros of the other side
            k, v = (k.to(tl.int32) - 128).to(tl.float32), (v.to(tl.int32) - 128).to(tl.float32)
        if floats:
            scores = tl.dot(q, k.to(tl.float32), input_precision="ieee")
        else:
            scores = tl.dot(q.to(tl.bfloat16), k.to(tl.bfloat16))
        if stepped:
            scores *= tl.load(key_steps + page * page_tokens + token).to(tl.float32)[None, :]
        if capped:  # cap · tanh(scores / cap)
            scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        shares, kept = tl.exp(scores - higher[:, None]), tl.exp(most - higher)
        total = total * kept + tl.sum(shares, 1)
        if stepped:
            shares *= tl.load(value_steps + page * page_tokens + token).to(tl.float32)[None, :]
        if floats:
            made = tl.dot(shares, v.to(tl.float32), input_precision="ieee")
        else:
            made = tl.dot(shares.to(tl.bfloat16), v.to(tl.bfloat16))
        sums, most = sums * kept[:, None] + made, higher
    tl.store(mixed + where, sums / total[:, None], mask=own)


def refusal(pages: Pages) -> str | None:
    """Why pages are not read here; None when they are."""
    numbers = pages.keys.numbers
    return None if numbers in (None, "int8") else f"keys and values are cached as {numbers}"


def paged_attention(
    queries: Tensor,
    layer: int,
    pages: Pages,
    batch: Batch,
    window: int | None,
    cap: float | None = None,
) -> Tensor:
    """As `compress.runtime.attention.paged_attention`, for pages without a `refusal`.

    Products are of bfloat16 where pages are, or of float32; sums and softmax are float32.
    """
    rows, heads, width = queries.shape
    keys, values, kv_heads = pages.keys, pages.values, pages.keys.codes.shape[2]
    group, each = heads // kv_heads, keys.codes.shape[-1]
    mixed = torch.empty(rows, heads * width, dtype=queries.dtype, device=queries.device)
    _attend[(rows, kv_heads)](
        queries.contiguous(), keys.codes[layer], values.codes[layer],
        _steps(keys, layer), _steps(values, layer), batch.tables, batch.owners, batch.positions,
        mixed, heads, kv_heads, width, batch.tables.shape[1], keys.codes.shape[4],
        values.codes.shape[3], width**-0.5, cap or 0.0, window or 0,
        group=group, groups=max(_LEAST, triton.next_power_of_2(group)),
        wide=max(_LEAST, triton.next_power_of_2(width)), page_tokens=PAGE_TOKENS, lanes=LANES,
        each=each, coded=keys.numbers is not None, stepped=keys.steps is not None,
        capped=cap is not None, windowed=window is not None,
        floats=queries.dtype is torch.float32 or not queries.is_cuda,
    )  # fmt: skip
    return mixed


def _steps(half: Half, layer: int) -> Tensor:
    """Steps of a layer's tokens, or something in their place that is not read."""
    return half.codes[layer] if half.steps is None else half.steps[layer]

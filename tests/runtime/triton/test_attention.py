"""Paged attention of a few tokens, against float64 over what the pages hold."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.kv import KVScales
from compress.runtime.batch import gather
from compress.runtime.pages import Pages
from compress.runtime.scheduler import Span
from compress.runtime.triton.attention import paged_attention, refusal

F32, BF16 = torch.float32, torch.bfloat16
SPANS = [Span([1], 70, (5, 2, 4), 1), Span([1, 2, 3], 30, (1, 3), 3)]  # 71 and 33 tokens


def exact(queries, keys, values, position, window, cap):
    """One token's attention in float64: queries [H, D], keys and values [KV, S, D]."""
    first = 0 if window is None else max(0, position + 1 - window)
    group = len(queries) // len(keys)
    keys, values = (
        one[:, first : position + 1].double().repeat_interleave(group, 0) for one in (keys, values)
    )
    scores = torch.einsum("hd,hsd->hs", queries.double(), keys) / queries.shape[-1] ** 0.5
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    return torch.einsum("hs,hsd->hd", scores.softmax(-1), values).flatten()


def check(device, *, dtype=F32, shape=(2, 4, 16), scales=None, window=None, cap=None, near=1e-5):
    kv_heads, heads, width = shape
    chance = torch.Generator().manual_seed(0)
    pages = Pages(
        (2, 6, kv_heads, width), dtype=dtype, scales=[scales] * 2 if scales else (), device=device
    )
    batch = gather(SPANS)
    for span in SPANS:
        read = gather([Span([0] * (span.start + len(span.ids)), 0, span.pages, 0)]).on(device)
        states = torch.randn(2, len(read.ids), kv_heads, width, generator=chance).to(device, dtype)
        pages.write(1, read.slots, *states)
    queries = torch.randn(len(batch.ids), heads, width, generator=chance).to(device, dtype)
    assert refusal(pages) is None
    found = paged_attention(queries, 1, pages, batch.on(device), window, cap)
    held = [
        [
            half.read(1, batch.tables[owner].to(device), int(length)).cpu()
            for half in (pages.keys, pages.values)
        ]
        for owner, length in enumerate(batch.lengths)
    ]
    expected = [
        exact(query, *held[owner], int(position), window, cap)
        for query, owner, position in zip(queries.cpu(), batch.owners, batch.positions, strict=True)
    ]
    assert found.dtype is dtype
    error = found.cpu().double() - torch.stack(expected)
    assert error.abs().max() < near


@pytest.mark.parametrize("shape", [(2, 4, 16), (1, 3, 24), (3, 3, 64)], ids=str)
def test_attention_is_that_of_float64(device, shape):
    check(device, shape=shape)


@pytest.mark.parametrize("window", [1, 9, 40])
def test_a_window_hides_what_is_older(device, window):
    check(device, window=window)


def test_scores_are_bent(device):
    check(device, cap=0.5)


def test_pages_of_bfloat16(device):
    check(device, dtype=BF16, shape=(1, 4, 24), near=2**-6)


@pytest.mark.parametrize("own", [True, False], ids=["token", "head"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_pages_of_int8(device, own, dtype):
    """Steps that tokens share stay outside: codes are attended to as they are."""
    scale = None if own else torch.full((2, 1), 0.25)
    near = 2**-6 if dtype is BF16 else 1e-5
    # codes themselves are up to a hundred times as large as keys and values
    check(
        device, dtype=dtype, scales=KVScales("int8", scale, scale), near=near * (1 if own else 32)
    )


def test_floats_of_one_byte_are_left_to_torch(device):
    pages = Pages((1, 1, 1, 16), dtype=BF16, scales=[KVScales("fp8_e4m3", None, None)])
    assert refusal(pages) == "keys and values are cached as fp8_e4m3"

"""Causal attention of long windows, in slices of queries that see only what they may.

torch's fused attention on a CPU works through the masked half as well. Cut into slices of 64
queries the work is half. In a walk, with products of bfloat16 inputs summed in float32 and a
float32 softmax, the result is closer to float64 than the fused one's. In training scores are made
again on the way back, as the fused kernel does (Dao et al. 2022, arXiv:2205.14135), whose way back
takes 2.6 times as long. Whatever else occurs (a mask, CUDA, float32, a few tokens) goes to
transformers' own function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress.kernels.precision import bfloat16_products
from compress.surgery.caching import cached

NAME = "compress_sliced"
_SLICE = 64


def register() -> str:
    """Make the function known to transformers; returns its name as an `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def _attend(
    module: Any,
    query: Tensor,  # [B, H, T, D]
    key: Tensor,  # [B, KV heads, T, D]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    key, value = cached(module, key, value)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    plain = attention_mask is None and query.shape[2] == key.shape[2] > _SLICE
    if not plain or query.dtype != torch.bfloat16 or query.device.type != "cpu":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return out, None
    scaling = scaling or query.shape[-1] ** -0.5
    if torch.is_grad_enabled() and query.requires_grad:
        learning: Any = _Learning.apply
        return learning(query, key, value, scaling), None
    return causal(query, key, value, scaling), None


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention of bfloat16 tensors, accumulated in float32.

    Args:
        query: [B, H, T, D].
        key: [B, KV heads, T, D]; heads that share keys are rows of one product.
        value: like key.
        scaling: of the scores.

    Returns:
        [B, T, H, D] bfloat16.
    """
    queries = _grouped(query.float().mul_(scaling), key)
    with bfloat16_products():
        return _mixed(queries, key.float(), value.float(), query.dtype)


class _Learning(torch.autograd.Function):
    """`causal` with gradients, all of it in bfloat16; nothing [T, T] is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[B, H, T, D] → [B, T, H, D]."""
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        return _mixed(_grouped(query * scaling, key), key, value, value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Slice by slice; what slices add to keys and values is summed in float32."""
        query, key, value = ctx.saved_tensors
        queries = _grouped(query * ctx.scaling, key)
        above = _grouped(above.transpose(1, 2), key)
        by_queries = torch.empty_like(queries)
        by_key, by_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        for piece in _slices(query.shape[2]):
            shares = _shares(queries, key, piece)
            rows, seen = above[..., piece, :].flatten(2, 3), slice(piece.stop)
            by_value[..., seen, :] += shares.transpose(-1, -2) @ rows
            by_shares = rows @ value[..., seen, :].transpose(-1, -2)
            by_scores = torch._softmax_backward_data(by_shares, shares, -1, shares.dtype)
            by_rows = by_scores @ key[..., seen, :]
            by_queries[..., piece, :] = by_rows.view(by_queries[..., piece, :].shape)
            asking = queries[..., piece, :].flatten(2, 3)
            by_key[..., seen, :] += by_scores.transpose(-1, -2) @ asking
        by_query = (by_queries * ctx.scaling).view(query.shape)
        return by_query, by_key.to(key.dtype), by_value.to(value.dtype), None


def _grouped(query: Tensor, key: Tensor) -> Tensor:
    """[B, H, T, D] → [B, KV heads, heads that share them, T, D]."""
    found: Tensor = query.unflatten(1, (key.shape[1], -1))
    return found


def _slices(tokens: int) -> Iterator[slice]:
    return (slice(at, min(at + _SLICE, tokens)) for at in range(0, tokens, _SLICE))


def _mixed(queries: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """What scaled queries, grouped, take of values: [B, T, H, D] in `dtype`."""
    batch, shared, each, tokens, _ = queries.shape
    out = value.new_empty(batch, tokens, shared, each, value.shape[-1], dtype=dtype)
    for piece in _slices(tokens):
        mixed = _shares(queries, key, piece) @ value[..., : piece.stop, :]
        out[:, piece] = mixed.unflatten(2, (each, -1)).permute(0, 3, 1, 2, 4)
    return out.flatten(2, 3)


def _shares(queries: Tensor, key: Tensor, piece: slice) -> Tensor:
    """How a slice of queries, grouped and scaled, shares itself out over keys: [B, KV, N, T']."""
    rows = queries[..., piece, :].flatten(2, 3)
    scores = rows @ key[..., : piece.stop, :].transpose(-1, -2)
    count = piece.stop - piece.start
    future = torch.full((count, count), -torch.inf, dtype=scores.dtype).triu_(1)
    scores.unflatten(2, (-1, count))[..., piece] += future
    return scores.softmax(-1)

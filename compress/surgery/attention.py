"""Causal attention for long windows of a walk, in slices of queries that see only what they may.

torch's fused attention on a CPU works through the masked half as well. Cut into slices of 64
queries the work is half, and with products of bfloat16 inputs summed in float32 and a float32
softmax the result is closer to float64 than the fused one's. Whatever else occurs (a mask, CUDA,
float32, a few tokens) goes to transformers' own function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.kernels.precision import bfloat16_products
from compress.surgery.caching import cached

NAME = "compress_walk"
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
    plain = attention_mask is None and query.shape[2] == key.shape[2] > _SLICE
    if not plain or query.dtype != torch.bfloat16 or query.device.type != "cpu":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return out, None
    return causal(query, key, value, scaling or query.shape[-1] ** -0.5), None


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
    batch, heads, tokens, width = query.shape
    shared = key.shape[1]
    queries = query.float().mul_(scaling).view(batch, shared, heads // shared, tokens, width)
    keys, values = key.float().transpose(-1, -2), value.float()
    out = query.new_empty(batch, tokens, heads, value.shape[-1])
    future = torch.full((_SLICE, _SLICE), -torch.inf).triu_(1)
    with bfloat16_products():
        for start in range(0, tokens, _SLICE):
            stop = min(start + _SLICE, tokens)
            count = stop - start
            rows = queries[..., start:stop, :].reshape(batch, shared, -1, width)
            scores = rows @ keys[..., :stop]
            mine = scores.view(batch, shared, -1, count, stop)
            mine[..., start:] += future[:count, :count]
            mixed = scores.softmax(-1) @ values[..., :stop, :]
            out[:, start:stop] = mixed.view(batch, heads, count, -1).transpose(1, 2)
    return out

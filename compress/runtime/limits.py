"""How much an engine takes on: tokens of a request, of all requests, and of a step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compress.errors import RequestError
from compress.kernels.kv import KVScales
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.model import Model

KV_CACHES = ("auto", "int8")
POOL_TOKENS = 32_768  # whose keys and values there is room for, unless a context is longer
MEMORY_SHARE = 4  # what they may take of the memory: one part of so many


@dataclass(frozen=True)
class Limits:
    """How much an engine takes on."""

    context_tokens: int
    kv_tokens: int
    scales: tuple[KVScales, ...]  # how keys and values are rounded, () for not at all
    step_tokens: int
    beside_tokens: int
    max_running: int


def limits(
    model: Model,
    *,
    context_tokens: int | None,
    kv_tokens: int | None,
    kv_cache: str,
    step_tokens: int,
    beside_tokens: int,
    max_running: int,
) -> Limits:
    """The limits that were asked for, those left open chosen; see `Engine.open`.

    Raises:
        RequestError: a value is out of its range.
    """
    if not 1 <= max_running <= step_tokens:
        raise RequestError(
            f"max_running: {max_running} must be 1 to {step_tokens} (step_tokens): a step "
            "computes a token of each request that runs."
        )
    if not beside_tokens >= 1:
        raise RequestError(f"beside_tokens: {beside_tokens} must be 1 or more.")
    scales = _scales(model, kv_cache)
    context, pool = _room(model, scales, context_tokens, kv_tokens)
    return Limits(context, pool, scales, step_tokens, beside_tokens, max_running)


def _scales(model: Model, kv_cache: str) -> tuple[KVScales, ...]:
    """How each block caches its keys and values; () for no rounding."""
    if kv_cache not in KV_CACHES:
        raise RequestError(f"kv_cache: {kv_cache!r} is not one of {', '.join(KV_CACHES)}.")
    if kv_cache == "auto":
        return model.kv_scales
    if model.kv_scales:
        raise RequestError(
            f"kv_cache: {kv_cache} is for artifacts that do not say how they cache keys and "
            f"values; this one does ({model.kv_scales[0].numbers}). Leave it at auto."
        )
    return (KVScales("int8", None, None),) * len(model.blocks)


def _room(
    model: Model, scales: Sequence[KVScales], context: int | None, kv_tokens: int | None
) -> tuple[int, int]:
    """Tokens of one request, and of all together."""
    longest = model.settings.max_tokens
    if context is not None and not 1 <= context <= longest:
        raise RequestError(
            f"context_tokens: {context:,} must be 1 to {longest:,} (max_position_embeddings)."
        )
    if kv_tokens is not None and kv_tokens < (context or 1):
        raise RequestError(
            f"kv_tokens: {kv_tokens:,} hold no request of {context or 1:,} tokens (context_tokens)."
        )
    if kv_tokens is None:
        page_bytes = model.pages(PAGE_TOKENS, scales).nbytes
        fits = max(1, _memory(model.device) // MEMORY_SHARE // page_bytes) * PAGE_TOKENS
        kv_tokens = max(context or 1, min(fits, max(longest, POOL_TOKENS)))
    return context or min(longest, kv_tokens), kv_tokens


def _memory(device: str) -> int:
    """Bytes of the machine; of a GPU, those that are free, for its pages take theirs at once."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

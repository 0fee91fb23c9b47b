"""Cached keys and values before a run: what cannot work, what they take, who reads their scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.anatomy import Anatomy, kv_width
from compress.artifact.formats.kv import bytes_per_token
from compress.plan.footprint import HEAP, Job
from compress.plan.reshaping import made_headers
from compress.plan.sizes import caches
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc
from compress.results import Limits
from compress.teacher.headers import Headers

_TRIED = 29 * 4  # ranges that a search tries, and what trying one does with a number
_BY_CHANNEL = ("llama", "mistral", "qwen2", "qwen3")
_TRIED_TOKENS = 8192  # on which it tries them


def mistakes(
    recipe: Recipe, anatomy: Anatomy, config: Mapping[str, Any]
) -> Iterator[tuple[Loc, str]]:
    """What of the stage `kv_cache` cannot work on a model."""
    spec, loc = recipe.kv_cache, ("stages", len(recipe.stages) - 1, "kv_cache")
    if spec is None:
        return
    if config.get("attn_logit_softcapping"):
        yield (
            loc,
            f"{anatomy.model_type} caps the scores of its attention, by a function that rounds no "
            "keys and values. Leave out the stage.",
        )
    if spec.granularity == "channel" and anatomy.model_type not in _BY_CHANNEL:
        yield (
            (*loc, "granularity"),
            f"channel is for {', '.join(_BY_CHANNEL)}, whose heads are rotated whole, not for "
            f"{anatomy.model_type}. Use head.",
        )
    separate = all(any(x.role == "k" for x in block.linears) for block in anatomy.blocks)
    if recipe.artifact.format == "compressed-tensors" and not separate:
        yield (
            loc,
            "readers of compressed-tensors find attention by its k_proj, and "
            f"{anatomy.model_type} has none. Use artifact.format: packed.",
        )


def per_token(recipe: Recipe, headers: Headers) -> tuple[int, int]:
    """Bytes of keys and values that a token takes in a cache, of the teacher and the student."""
    cast = headers.cast(recipe.teacher.dtype)
    before = bytes_per_token(cast.anatomy, cast.config, None)
    made = made_headers(recipe, cast)
    return before, bytes_per_token(made.anatomy, made.config, caches(recipe))


def memory(job: Job, limits: Limits) -> int:
    """What calibrating holds: a block expanded, activations, keys and values of all windows."""
    if job.recipe.kv_cache is None:
        return 0

    def room(width: int) -> int:
        size = job.tokens * width * job.item_bytes
        return 0 if size > limits.resident_bytes else size

    weights = max(sum(x.weights for x in block.linears) for block in job.anatomy.blocks)
    width = kv_width(job.anatomy, job.headers.config)
    searching = 4 * 8 * min(job.tokens, _TRIED_TOKENS) * width  # float64 errors, float32 copies
    states = 2 * room(width) + 2 * job.tokens * width  # magnitudes of one of the two
    expanded = (4 + job.item_bytes) * weights
    return job.base_bytes + HEAP + expanded + room(job.anatomy.hidden_size) + states + searching


def work(job: Job) -> float:
    """Operations: a walk, keys and values once more, and what searches their scales."""
    if (spec := job.recipe.kv_cache) is None:
        return 0.0
    anatomy, tokens = job.anatomy, float(job.tokens)
    numbers = 2.0 * len(anatomy.blocks) * kv_width(anatomy, job.headers.config)
    tried = _TRIED * min(tokens, _TRIED_TOKENS) if spec.scale_search == "mse" else 0.0
    return 2 * 1.3 * tokens * anatomy.weights + numbers * (10 * tokens + tried)

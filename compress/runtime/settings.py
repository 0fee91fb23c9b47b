"""What the arithmetic of a model needs to know beside its weights, read from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.anatomy import Anatomy
from compress.errors import ModelError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Settings:
    """Shapes and constants."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    max_tokens: int  # max_position_embeddings
    windows: tuple[int | None, ...]  # per block: how far back attention sees, None for all


def read_settings(config: Mapping[str, Any], anatomy: Anatomy) -> Settings:
    """Read what the arithmetic needs; widths come from the tensors, which no config can contradict.

    Raises:
        ModelError: a family or an activation that is not run here, or a config without its numbers.
    """
    if anatomy.model_type not in SUPPORTED:
        raise ModelError(
            f"config.json: model_type {anatomy.model_type!r} is not run here. "
            f"Supported: {', '.join(SUPPORTED)}. "
            "Export the artifact as compressed-tensors and serve it with another engine."
        )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(
            f"config.json: hidden_act {activation!r} is not run here. Supported: silu."
        )
    missing = [
        key for key in ("num_attention_heads", "max_position_embeddings") if not config.get(key)
    ]
    if missing:
        raise ModelError(f"config.json: {' and '.join(missing)} missing. Fetch the config again.")
    heads = int(config["num_attention_heads"])
    queries, keys = _widths(anatomy, "q"), _widths(anatomy, "k")
    head_dim = queries // heads
    return Settings(
        heads, keys // head_dim, head_dim, float(config.get("rms_norm_eps", 1e-6)),
        int(config["max_position_embeddings"]), _windows(config, len(anatomy.blocks)),
    )  # fmt: skip


def _widths(anatomy: Anatomy, role: str) -> int:
    found = {one.out_features for one in anatomy.linears if one.role == role}
    if len(found) != 1:
        raise ModelError(
            f"checkpoint: {role} projections of widths {sorted(found)}; all must be equal here."
        )
    return found.pop()


def _windows(config: Mapping[str, Any], blocks: int) -> tuple[int | None, ...]:
    """The sliding window of each block, by the rules of each family."""
    kind = config["model_type"]
    if kind == "llama":
        return (None,) * blocks
    window = config.get(
        "sliding_window", 4096
    )  # the families' default when the key is absent; null is none
    if kind == "mistral":
        return (window,) * blocks
    if not config.get("use_sliding_window", False):
        return (None,) * blocks
    first = int(config.get("max_window_layers", 28))
    kinds = config.get("layer_types") or [
        "sliding_attention" if i >= first else "" for i in range(blocks)
    ]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)

"""Rotary position embedding: the frequencies a config asks for, and the rotation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.errors import ModelError

SUPPORTED = ("default", "linear", "llama3")


def frequencies(config: Mapping[str, Any], head_dim: int) -> Tensor:
    """Angle per position of each pair of dimensions, [D/2] float32.

    Reads `rope_parameters` (transformers 5), or `rope_scaling` and `rope_theta` (before).

    Raises:
        ModelError: a rotation of another kind, or one whose numbers are missing.
    """
    rope = {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_scaling") or config.get("rope_parameters") or {}),
    }
    kind = rope.get("rope_type") or rope.get("type") or "default"
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if kind not in SUPPORTED or partial != 1.0:
        found = (
            f"rope type {kind!r}" if kind not in SUPPORTED else f"partial_rotary_factor {partial}"
        )
        raise ModelError(
            f"config.json: {found} is not run here. Supported: {', '.join(SUPPORTED)}, over the "
            "whole head. Export the artifact and serve it with another engine."
        )
    base = 10_000.0 if rope["rope_theta"] is None else float(rope["rope_theta"])
    plain = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if kind == "linear":
        return plain / _number(rope, "factor")
    return plain if kind == "default" else _llama3(plain, rope, config)


def _llama3(plain: Tensor, rope: Mapping[str, Any], config: Mapping[str, Any]) -> Tensor:
    """Slow rotations slowed by `factor`, fast ones kept, a ramp between (Llama 3.1)."""
    factor, low, high = (
        _number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    trained = float(
        rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    )
    turns = trained * plain / (2 * math.pi)  # full turns within the length it was trained on
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / factor)


def _number(rope: Mapping[str, Any], key: str) -> float:
    if not isinstance(rope.get(key), int | float):
        raise ModelError(
            f"config.json: rope parameters have no number {key!r} ({dict(rope)}). "
            "Fetch the config again."
        )
    return float(rope[key])


def angles(frequency: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of positions [N], each [N, 1, D]."""
    angle = torch.outer(positions.float(), frequency)[:, None]
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([cosine, cosine], -1).to(dtype), torch.cat([-sine, sine], -1).to(dtype)


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate [N, heads, D]; the halves of a head pair up, so a roll brings each its partner."""
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), sine)

"""Rotary position embedding: the frequencies a config asks for, and the rotation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.errors import ModelError

SUPPORTED = ("default", "linear", "llama3")


def frequencies(config: Mapping[str, Any], head_dim: int, kind: str) -> Tensor:
    """Angle per position of each pair of dimensions that are turned, float32; [D/2] if all are.

    Reads `rope_parameters` (transformers 5), or `rope_scaling` and `rope_theta` (before); of each
    kind of attention apart where a family tells them apart.

    Raises:
        ModelError: a rotation of another kind, or one whose numbers are missing.
    """
    rope, neox = _told(config, kind), config.get("model_type") == "gpt_neox"
    found = rope.get("rope_type") or rope.get("type") or "default"
    named = (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor"))
    share = next((one for one in named if one is not None), 0.25 if neox else 1.0)
    if found not in SUPPORTED or not (share == 1.0 or neox):
        known = found in SUPPORTED
        shown = f"partial_rotary_factor {share}" if known else f"rope type {found!r}"
        raise ModelError(
            f"config.json: {shown} is not run here. Supported: {', '.join(SUPPORTED)}, over the "
            "whole head. Export the artifact and serve it with another engine."
        )
    width = int(head_dim * share)
    base = 10_000.0 if rope["rope_theta"] is None else float(rope["rope_theta"])
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    if found == "default":
        return plain
    factor = _number(rope, "factor")
    if found == "linear":
        return plain / factor
    # Slow rotations slowed by `factor`, fast ones kept, a ramp between (Llama 3.1).
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    trained = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    turns = float(trained) * plain / (2 * math.pi)  # within the length it was trained on
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / factor)


def _told(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What a config says of the rotation in one kind of attention."""
    scaling, told = config.get("rope_scaling"), config.get("rope_parameters") or {}
    if kind in told:
        return dict(told[kind])
    theta = config.get("rope_theta", config.get("rotary_emb_base"))
    if config.get("model_type") == "gemma3_text" and not told:  # before transformers 5
        if kind != "full_attention":
            return {"rope_theta": config.get("rope_local_base_freq")}
        theta = 1_000_000.0 if theta is None else theta
    share = config.get("rotary_pct")
    return {"rope_theta": theta, "partial_rotary_factor": share, **(scaling or told)}


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
    """Rotate [N, heads, D], the first dimensions of each head where there are angles for no more.

    The halves of what is rotated pair up, so a roll brings each its partner.
    """
    width = cosine.shape[-1]
    first, rest = heads[..., :width], heads[..., width:]
    turned = torch.addcmul(first * cosine, first.roll(width // 2, -1), sine)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

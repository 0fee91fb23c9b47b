"""Cached keys and values as docs/formats.md tells of them: what config.json says, which scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.anatomy import Anatomy, kv_heads, kv_width
from compress.errors import ArtifactError

if TYPE_CHECKING:
    import torch

    from compress.verify.entry import Entry
    from compress.verify.reader import Expected

Numbers = Literal["int8", "fp8_e4m3"]
ENDINGS = ("k_scale", "v_scale")
_SMALLEST, _LARGEST = 2.0**-17, 65280.0
_FIELDS = {"packed": "kv_cache", "compressed-tensors": "kv_cache_scheme"}
_PACKED: dict[str, Numbers] = {"int8": "int8", "fp8_e4m3": "fp8_e4m3"}
_TYPES: dict[str, Numbers] = {"int": "int8", "float": "fp8_e4m3"}
_FIXED = {
    "num_bits": 8, "symmetric": True, "group_size": None, "dynamic": False, "actorder": None,
}  # fmt: skip


def numbers(format: str, quantization: Mapping[str, Any]) -> tuple[Numbers, str] | None:
    """What cached numbers are, and what shares a scale; None: nothing is rounded.

    Raises:
        ArtifactError: something that the page does not describe.
    """
    told = quantization.get(_FIELDS[format]) if format in _FIELDS else None
    if told is None:
        return None
    fields = dict(told) if isinstance(told, dict) else {}
    if format == "packed":
        kind, size = _PACKED.get(str(fields.pop("numbers", None))), fields.pop("granularity", None)
        whole, shared = not fields, size if size in ("tensor", "head", "channel", "token") else None
    else:
        kind, size = _TYPES.get(str(fields.pop("type", None))), fields.pop("strategy", None)
        shared = {"tensor": "tensor", "attn_head": "head"}.get(str(size))
        whole = fields == _FIXED
    if kind is None or shared is None or not whole:
        raise ArtifactError(
            f"config.json: {_FIELDS[format]} {told!r} is a scheme that is not written here."
        )
    return kind, shared


def expected(
    format: str, anatomy: Anatomy, config: Mapping[str, Any], shared: str, dtype: str
) -> Expected:
    """The scales that a folder must hold; `dtype` is that of its scales."""
    if shared == "token":
        return {}
    heads = kv_heads(config)
    channels = kv_width(anatomy, config) // heads if shared == "channel" else 1
    shape: tuple[int, ...] = (1,) if shared == "tensor" else (heads, channels)
    if shared == "head" and format != "packed":
        shape = (heads, 1, 1)
    names = (f"{block.attention}.{ending}" for block in anatomy.blocks for ending in ENDINGS)
    return dict.fromkeys(names, ((dtype,), shape))


def scales(
    entries: Mapping[str, Entry], attention: str
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Scales of keys and of values of one block: [1], [KV, 1] or [KV, D] float32.

    None where each token makes its own.
    """
    import torch

    if f"{attention}.{ENDINGS[0]}" not in entries:
        return None, None
    keys, values = (
        torch.from_numpy(entries[f"{attention}.{ending}"].floats()) for ending in ENDINGS
    )
    return (keys[..., 0], values[..., 0]) if keys.dim() == 3 else (keys, values)


def problems(entries: Mapping[str, Entry], anatomy: Anatomy) -> Iterator[str]:
    """Scales that are not positive, not in range, or not exact in bfloat16 and float16."""
    names = (f"{block.attention}.{ending}" for block in anatomy.blocks for ending in ENDINGS)
    for name in names:
        if name in entries:  # there is none where each token makes its own
            found = entries[name].floats().astype(np.float32)
            if not (np.isfinite(found) & (found >= _SMALLEST) & (found <= _LARGEST)).all():
                yield f"{name}: not all of it is within 2^-17 … 65280"
            elif (found.view(np.uint32) & 0xFFFF).any():
                yield f"{name}: bfloat16 does not hold it exactly"

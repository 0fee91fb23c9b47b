"""Cached keys and values as docs/formats.md tells of them: what config.json says, which scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.anatomy import Anatomy, kv_heads, kv_width
from compress.errors import ArtifactError

if TYPE_CHECKING:
    import torch

    from compress.verify.reader import Entry, Expected

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
        whole, by_head = not fields, {"tensor": False, "head": True}.get(str(size))
    else:
        kind, size = _TYPES.get(str(fields.pop("type", None))), fields.pop("strategy", None)
        whole, by_head = fields == _FIXED, {"tensor": False, "attn_head": True}.get(str(size))
    if kind is None or by_head is None or not whole:
        raise ArtifactError(
            f"config.json: {_FIELDS[format]} {told!r} is a scheme that is not written here."
        )
    return kind, by_head


def expected(
    format: str, anatomy: Anatomy, config: Mapping[str, Any], by_head: bool, dtype: str
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
    return {name: ((dtype,), shape) for name in names}


def scales(
    entries: Mapping[str, Entry], attention: str
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Scales of keys and of values of one block: [1], [KV, 1] or [KV, D] float32.

    None where each token makes its own.
    """
    import torch

    keys, values = (entries[f"{attention}.{ending}"].floats().flatten() for ending in ENDINGS)
    return torch.from_numpy(keys.copy()), torch.from_numpy(values.copy())


def problems(entries: Mapping[str, Entry], anatomy: Anatomy) -> Iterator[str]:
    """Scales that are not positive, not in range, or not exact in bfloat16 and float16."""
    for block in anatomy.blocks:
        for ending in ENDINGS:
            name = f"{block.attention}.{ending}"
            found = entries[name].floats().astype(np.float32)
            if not (np.isfinite(found) & (found >= _SMALLEST) & (found <= _LARGEST)).all():
                yield f"{name}: not within 2^-17 … 65280: {found.flatten().tolist()}"
            elif (found.view(np.uint32) & 0xFFFF).any():
                yield f"{name}: bfloat16 does not hold it exactly"

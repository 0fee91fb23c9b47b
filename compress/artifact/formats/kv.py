"""How an artifact stores the scales of cached keys and values: two small tensors a block.

With A the module that attends (``model.layers.0.self_attn``), both formats that have a place for
them store

    A.k_scale   A.v_scale    packed: float16, [1], [KV, 1] or [KV, D]
                             compressed-tensors: in the config's dtype, [1] or [KV, 1, 1]

and say once in config.json what the numbers are: ``kv_cache`` or ``kv_cache_scheme``. Names and
shapes of the latter are those of compressed-tensors 0.20 and vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from compress.anatomy import Anatomy, kv_heads, kv_width
from compress.artifact.formats.matrix import Specs, check_stored
from compress.errors import ArtifactError, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.kv import KVScales
    from compress.storage import TensorInfo

SUFFIXES = (".k_scale", ".v_scale")
_FIELD = {"packed": "kv_cache", "compressed-tensors": "kv_cache_scheme"}
_TYPES = {"int8": "int", "fp8_e4m3": "float"}
_STRATEGIES = {"tensor": "tensor", "head": "attn_head"}
_GRANULARITIES = {
    "packed": ("tensor", "head", "channel", "token"),
    "compressed-tensors": ("tensor", "head"),
}


@dataclass(frozen=True)
class KVScheme:
    """How every block of an artifact caches its keys and values."""

    numbers: Literal["int8", "fp8_e4m3"]
    granularity: Literal["tensor", "head", "channel", "token"]


def scheme_of(scales: KVScales) -> KVScheme:
    """The scheme of one block's scales."""
    return KVScheme(scales.numbers, scales.granularity)


def refusal(format: str, scheme: KVScheme) -> str | None:
    """Why a format cannot hold scales of keys and values; None where it can."""
    if scheme.granularity in _GRANULARITIES.get(format, ()):
        return None
    holds = [name for name, known in _GRANULARITIES.items() if scheme.granularity in known]
    return (
        f"artifact.format {format}: has no place for scales of keys and values, one a "
        f"{scheme.granularity}. Use artifact.format: {' or '.join(holds)}."
    )


def encode(
    format: str, attention: str, scales: KVScales, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of one block; `dtype` is that of the dense tensors.

    Raises:
        ArtifactError: the format has no place for them.
    """
    import torch

    if reason := refusal(format, scheme_of(scales)):
        raise ArtifactError(reason)
    for suffix, found in zip(SUFFIXES, (scales.keys, scales.values), strict=True):
        if found is None:
            continue  # made for each token when it is cached
        if format == "packed":
            yield attention + suffix, found.to(torch.float16)
        else:
            yield attention + suffix, (found if found.dim() == 1 else found[..., None]).to(dtype)


def describe(
    format: str,
    quantization: Mapping[str, Any] | None,
    scheme: KVScheme | None,
    anatomy: Anatomy,
) -> dict[str, Any] | None:
    """The `quantization_config` of a format, with what it says of keys and values."""
    if scheme is None:
        return None if quantization is None else dict(quantization)
    if format == "packed":
        return {**(quantization or {}), _FIELD[format]: asdict(scheme)}
    return {**(quantization or _nothing_else(anatomy)), _FIELD[format]: _arguments(scheme)}


def _nothing_else(anatomy: Anatomy) -> dict[str, Any]:
    """What compressed-tensors says where every linear is dense."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {},
        "ignore": [linear.name for linear in (*anatomy.linears, anatomy.head)],
        "global_compression_ratio": None,
    }


def _arguments(scheme: KVScheme) -> dict[str, Any]:
    return {
        "num_bits": 8,
        "type": _TYPES[scheme.numbers],
        "symmetric": True,
        "strategy": _STRATEGIES[scheme.granularity],
        "group_size": None,
        "dynamic": False,
        "actorder": None,
    }


def read(format: str, quantization: Mapping[str, Any]) -> KVScheme | None:
    """The scheme that a `quantization_config` tells of; None where nothing is rounded.

    Raises:
        ArtifactError: a scheme that is not read here.
    """
    told = quantization.get(_FIELD[format]) if format in _FIELD else None
    if told is None:
        return None
    for numbers in _TYPES:
        for granularity in _GRANULARITIES[format]:
            scheme = KVScheme(numbers, granularity)  # type: ignore[arg-type]
            if _is(format, told, scheme):
                return scheme
    raise ArtifactError(
        f"config.json: {_FIELD[format]} {shown(told)} is not read here. Read are 8 bits, "
        "symmetric, with scales known beforehand: int8 or e4m3, a scale for each of "
        f"{', '.join(_GRANULARITIES[format])}."
    )


def _is(format: str, told: Any, scheme: KVScheme) -> bool:
    wanted = asdict(scheme) if format == "packed" else _arguments(scheme)
    if not isinstance(told, dict):
        return False
    if format == "packed":
        return told == wanted
    # other writers leave fields out, or add some that change nothing (an observer, say)
    return all(told.get(key) == value for key, value in wanted.items() if value is not None)


def stored(
    format: str, anatomy: Anatomy, config: Mapping[str, Any], scheme: KVScheme | None
) -> Specs:
    """Names, dtypes and shapes of the scales of all blocks."""
    if scheme is None or scheme.granularity == "token":
        return {}
    heads = kv_heads(config)
    shape = {
        "tensor": (1,), "head": (heads, 1), "channel": (heads, kv_width(anatomy, config) // heads),
    }[scheme.granularity]  # fmt: skip
    if format == "packed":
        spec: tuple[tuple[str, ...], tuple[int, ...]] = ("F16",), shape
    else:
        spec = ("F32", "F16", "BF16"), (shape if len(shape) == 1 else (*shape, 1))
    return {block.attention + suffix: spec for block in anatomy.blocks for suffix in SUFFIXES}


def bytes_per_token(anatomy: Anatomy, config: Mapping[str, Any], scheme: KVScheme | None) -> int:
    """Bytes of keys and values that a token takes in a cache, over all blocks.

    Args:
        anatomy: of the model.
        config: its ``config.json``, in whose dtype they are cached where nothing rounds them.
        scheme: how they are rounded.
    """
    plain = 4 if str(config.get("dtype", config.get("torch_dtype"))) == "float32" else 2
    one = kv_width(anatomy, config) * (1 if scheme else plain)
    if scheme and scheme.granularity == "token":
        one += 2 * kv_heads(config)  # a scale each
    return 2 * len(anatomy.blocks) * one


def check(
    format: str,
    anatomy: Anatomy,
    config: Mapping[str, Any],
    scheme: KVScheme | None,
    found: Mapping[str, TensorInfo],
) -> None:
    """Check that the scales are there that a scheme needs, and no others.

    Raises:
        ArtifactError: one is missing, extra or mis-shaped.
    """
    specs = stored(format, anatomy, config, scheme)
    check_stored(specs, found)
    if extra := sorted(name for name in found if name.endswith(SUFFIXES) and name not in specs):
        raise ArtifactError(
            f"{', '.join(extra[:3])}: extra: config.json tells of no rounded keys and values. "
            "Write the artifact again."
        )


def decode(attention: str, scheme: KVScheme, tensors: Mapping[str, Tensor]) -> KVScales:
    """Rebuild the scales of one block.

    Raises:
        ArtifactError: a scale that rounds nothing: zero, negative, infinite or no number.
    """
    from compress.kernels.kv import KVScales

    if scheme.granularity == "token":
        return KVScales(scheme.numbers, None, None)
    keys, values = (tensors[attention + suffix].float() for suffix in SUFFIXES)
    if keys.dim() == 3:
        keys, values = keys[..., 0], values[..., 0]
    for suffix, scale in zip(SUFFIXES, (keys, values), strict=True):
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise ArtifactError(
                f"{attention}{suffix}: not all of it is above zero and finite. Write the artifact "
                "again."
            )
    return KVScales(scheme.numbers, keys, values)

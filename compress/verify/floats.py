"""Read fp8, nvfp4 and mxfp4 by the bytes that docs/formats.md describes, from either format.

Codes are a byte each, or two to a byte, the first in the lower half; rows of `packed` are filled up
to words. All tables here are made from the definitions, not from the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ArtifactError

if TYPE_CHECKING:
    from compress.verify.entry import Entry
    from compress.verify.reader import Expected, Matrix

FORMATS = {
    "fp8": "float-quantized", "nvfp4": "nvfp4-pack-quantized", "mxfp4": "mxfp4-pack-quantized",
}  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")
_GROUPS = {"nvfp4": 16, "mxfp4": 32}
_E4M3 = {"num_bits": 8, "type": "float", "symmetric": True}
_E2M1 = {"num_bits": 4, "type": "float", "symmetric": True}
_NVFP4 = {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
_MXFP4 = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
_FIXED = {"dynamic": False, "actorder": None}
_BLOCK = {"strategy": "block", "group_size": None, "block_structure": [128, 128]}
# what a group of config_groups says of weights → kind, columns and rows that share a scale
_WEIGHTS: list[tuple[dict[str, Any], tuple[str, int | str, int]]] = [
    ({**_E4M3, "strategy": "channel", "group_size": None, **_FIXED}, ("fp8", "row", 1)),
    ({**_E4M3, "strategy": "tensor", "group_size": None, **_FIXED}, ("fp8", "row", 0)),
    ({**_E4M3, **_BLOCK, **_FIXED}, ("fp8", 128, 128)),
    ({**_E2M1, **_NVFP4, **_FIXED}, ("nvfp4", 16, 1)),
    ({**_E2M1, **_MXFP4, **_FIXED}, ("mxfp4", 32, 1)),
]
# what it says of inputs → numbers, whether a scale is stored, columns that share a scale
_INPUTS: list[tuple[dict[str, Any], tuple[str, bool, int]]] = [
    ({**_E4M3, "strategy": "token", "group_size": None, "dynamic": True}, ("fp8_e4m3", False, 0)),
    ({**_E4M3, "strategy": "tensor", "group_size": None, "dynamic": False}, ("fp8_e4m3", True, 0)),
    ({**_E4M3, "strategy": "group", "group_size": 128, "dynamic": True}, ("fp8_e4m3", False, 128)),
    ({**_E2M1, **_NVFP4, "dynamic": "local"}, ("fp4_e2m1", True, 16)),
    ({**_E2M1, **_MXFP4, "dynamic": True}, ("fp4_e2m1", False, 32)),
]


def told_weights(weights: Any) -> tuple[str, int | str, int] | None:
    """Kind, columns and rows that share a scale, as a group says; None where it says no floats."""
    return next((meant for said, meant in _WEIGHTS if said == weights), None)


def told_inputs(inputs: Any) -> dict[str, Any] | None:
    """How inputs are rounded, as a group says; None where it says nothing that is written here."""
    found = next((meant for said, meant in _INPUTS if said == inputs), None)
    return found and dict(zip(("numbers", "static", "group_size"), found, strict=True))


def kind(where: str, fields: Mapping[str, Any]) -> str:
    """The kind of a scheme of `packed`: int, fp8, nvfp4 or mxfp4.

    Raises:
        ArtifactError: its fields do not go together.
    """
    numbers, rows = fields.get("numbers", "int"), fields.get("scale_rows", 1)
    grid = (numbers, fields.get("bits"), fields.get("sym"))
    size = fields.get("group_size")
    if numbers == "int" and rows == 1:
        return "int"
    if grid == ("fp8_e4m3", 8, True) and type(rows) is int and rows >= 0:
        return "fp8"
    if grid == ("fp4_e2m1", 4, True) and rows == 1:
        for name, columns in _GROUPS.items():
            if size == columns:
                return name
    raise ArtifactError(
        f"config.json: {where} has the scheme {dict(fields)}, whose numbers are not written here."
    )


def expected(name: str, matrix: Matrix) -> Expected:
    """The tensors that hold a matrix, but for those of its inputs."""
    groups = matrix.columns // matrix.group_size
    rows = -(-matrix.rows // (matrix.scale_rows or matrix.rows))
    width = matrix.columns * matrix.bits // 8
    ours = matrix.codes == f"{name}.codes"
    scales: dict[str, tuple[str, ...]] = {"nvfp4": ("F8_E4M3",), "mxfp4": ("U8",)}
    found: Expected = {}
    if ours:
        found[matrix.codes] = ("I32",), (matrix.rows, -(-width // 4))
    else:
        found[matrix.codes] = ("F8_E4M3" if matrix.kind == "fp8" else "U8",), (matrix.rows, width)
    one = not ours and matrix.scale_rows == 0
    found[matrix.scales] = (
        scales.get(matrix.kind, ("F16",) if ours else _FLOATS),
        (1,) if one else (rows, groups),
    )
    if matrix.kind == "nvfp4":
        found[_global(matrix)] = ("F32",), (1,)
    return found


def scales(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The scales [O, G] of a matrix."""
    entry, every = entries[matrix.scales], matrix.scale_rows or matrix.rows
    if matrix.kind == "nvfp4":
        found = _e4m3()[entry.raw()] / entries[_global(matrix)].floats()
    elif matrix.kind == "mxfp4":
        raw = entry.raw().astype(np.int32)
        found = np.where(raw == 255, np.nan, np.ldexp(1.0, np.minimum(raw, 254) - 127))
    else:
        found = entry.floats()
    units = found.reshape(-1, matrix.columns // matrix.group_size)
    return np.repeat(units.astype(np.float32), every, axis=0)[: matrix.rows]


def weights(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The weights [O, I] of a matrix: numbers times scales."""
    scale = scales(entries, name, matrix)[..., None]
    codes = _codes(entries, matrix).reshape(matrix.rows, -1, matrix.group_size)
    table = _e4m3() if matrix.bits == 8 else _e2m1()
    weight: NDArray[np.float32] = table[codes]
    weight *= scale
    return weight.reshape(matrix.rows, matrix.columns)


def problems(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> Iterator[str]:
    """What in its numbers no writer means."""
    found = scales(entries, name, matrix)
    if not (np.isfinite(found).all() and (found > 0).all()):
        yield f"{name} scales: not finite, or not above zero"
    if matrix.kind == "mxfp4" and (entries[matrix.scales].raw() == 255).any():
        yield f"{name} scales: 255, which is no exponent"
    if matrix.kind == "nvfp4":
        over = entries[_global(matrix)].floats()[0]
        if not np.isfinite(over) or np.frexp(over)[0] != 0.5:
            yield f"{_global(matrix)}: {over}, not a power of two"
    codes = _codes(entries, matrix)
    if matrix.bits == 8 and (lost := int(((codes & 127) == 127).sum())):
        yield f"{matrix.codes}: {lost} codes are no number"
    if matrix.bits == 4 and (codes == 8).any():
        yield f"{matrix.codes}: negative zeros, which are not written"
    if entries[matrix.codes].dtype == "I32":
        width = matrix.columns * matrix.bits // 8
        if entries[matrix.codes].raw().reshape(matrix.rows, -1)[:, width:].any():
            yield f"{matrix.codes}: bits are set behind a row's last code"


def shared(entries: Mapping[str, Entry], matrix: Matrix) -> str:
    """What a matrix has to share with those that engines fuse with it, in words."""
    if matrix.kind == "nvfp4":
        return f" / {entries[_global(matrix)].floats()[0]:g}"
    if matrix.kind == "fp8" and matrix.scale_rows == 0:
        return f" x {entries[matrix.scales].floats().flatten()[0]:g}"
    return ""


def _global(matrix: Matrix) -> str:
    stem, _, ending = matrix.scales.rpartition(".")
    return f"{stem}.global_scale" if ending == "scales" else f"{stem}.weight_global_scale"


def _codes(entries: Mapping[str, Entry], matrix: Matrix) -> NDArray[np.uint8]:
    """Codes [O, I]."""
    rows = entries[matrix.codes].raw().reshape(matrix.rows, -1)
    if matrix.bits == 8:
        return rows[:, : matrix.columns]
    pairs = np.stack([rows & 15, rows >> 4], axis=-1)
    return pairs.reshape(matrix.rows, -1)[:, : matrix.columns]


def _e4m3() -> NDArray[np.float32]:
    """What each byte stands for."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(
        exponent == 0, np.ldexp(fraction / 8, -6), np.ldexp(1 + fraction / 8, exponent - 7)
    )
    size[(code & 127) == 127] = np.nan
    return np.where(code >> 7 == 1, -size, size).astype(np.float32)


def _e2m1() -> NDArray[np.float32]:
    """What each half byte stands for."""
    code = np.arange(16)
    exponent, fraction = code >> 1 & 3, code & 1
    size = np.where(exponent == 0, fraction / 2, np.ldexp(1 + fraction / 2, exponent - 1))
    return np.where(code >> 3 == 1, -size, size).astype(np.float32)

"""How linears round their inputs, as docs/formats.md tells it: fields of a scheme, two tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.errors import ArtifactError, shown

if TYPE_CHECKING:
    from compress.kernels.activations import Inputs
    from compress.verify.entry import Entry
    from compress.verify.reader import Expected, Matrix

_FLOATS = ("F32", "F16", "BF16")
_NUMBERS = ("int8", "fp8_e4m3", "fp4_e2m1")


@dataclass(frozen=True)
class Rounding:
    """How the inputs of a linear are rounded."""

    numbers: str
    threshold: float = 0.0
    outliers: bool = False  # a tensor lists the columns that stay
    static: bool = False  # a tensor holds a scale of all inputs
    group_size: int = 0  # columns of a row that share a scale; 0: all


def told(where: str, fields: Any) -> Rounding | None:
    """The rounding that the field `inputs` of a scheme tells.

    Raises:
        ArtifactError: it is none that is written here.
    """
    if fields is None:
        return None
    names = set(Rounding.__dataclass_fields__)
    if isinstance(fields, dict) and {"numbers"} <= set(fields) <= names:
        found = Rounding(**fields)
        sound = (
            found.numbers in _NUMBERS
            and type(found.threshold) in (int, float)
            and 0 <= found.threshold < math.inf
            and type(found.outliers) is type(found.static) is bool
            and type(found.group_size) is int
            and found.group_size in (0, 16, 32, 128)
        )
        if sound:
            return found
    raise ArtifactError(f"config.json: {where} has the inputs {shown(fields)}; none is written so.")


def expected(name: str, matrix: Matrix, entries: Mapping[str, Entry]) -> Expected:
    """The tensors that say more of the inputs of a matrix."""
    found: Expected = {}
    if matrix.inputs is not None and matrix.inputs.outliers:
        entry = entries.get(f"{name}.outliers")
        count = entry.shape[0] if entry is not None and len(entry.shape) == 1 else 0
        found[f"{name}.outliers"] = ("I32",), (count,)
    if matrix.inputs is not None and matrix.inputs.static:
        packed = matrix.codes == f"{name}.codes"
        whole = packed or _is_global(matrix)
        found[_scale(name, matrix)] = (("F32",) if whole else _FLOATS), (1,)
    return found


def read(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> Inputs | None:
    """How a linear rounds its inputs."""
    import torch

    from compress.kernels.activations import Inputs as Found

    rounding = matrix.inputs
    if rounding is None:
        return None
    columns = scale = None
    if rounding.outliers:
        columns = torch.from_numpy(entries[f"{name}.outliers"].array()).long()
    if rounding.static:
        scale = float(entries[_scale(name, matrix)].floats()[0])
        scale = 1 / scale if _is_global(matrix) and matrix.codes != f"{name}.codes" else scale
    numbers: Any = rounding.numbers
    return Found(numbers, float(rounding.threshold), columns, scale, rounding.group_size)


def problems(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> Iterator[str]:
    """Scales that are no scales, columns that are not there."""
    rounding = matrix.inputs
    if rounding is not None and rounding.static:
        scale = float(entries[_scale(name, matrix)].floats()[0])
        if not 0 < scale < math.inf:
            yield f"{_scale(name, matrix)}: {scale} is no scale"
    if rounding is not None and rounding.outliers:
        listed = entries[f"{name}.outliers"].array().tolist()
        if listed != sorted(set(listed)) or not all(0 <= c < matrix.columns for c in listed):
            yield f"{name}.outliers: not rising column numbers below {matrix.columns}"


def in_words(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> str:
    """How inputs are rounded: what linears that engines fuse must agree in."""
    rounding = matrix.inputs
    if rounding is None:
        return ""
    size = f" g{rounding.group_size}" if rounding.group_size else ""
    scale = f" x {entries[_scale(name, matrix)].floats()[0]:g}" if rounding.static else ""
    return f", inputs {rounding.numbers}{size}{scale}"


def _is_global(matrix: Matrix) -> bool:
    """Whether compressed-tensors stores the inverse of the one scale."""
    return matrix.kind == "nvfp4"


def _scale(name: str, matrix: Matrix) -> str:
    theirs = matrix.codes != f"{name}.codes" and _is_global(matrix)
    return f"{name}.input_global_scale" if theirs else f"{name}.input_scale"

"""GPTQ v1 as docs/formats.md tells it: which linears, by which scheme, what their words mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.anatomy import Anatomy
from compress.errors import ArtifactError, shown
from compress.verify.bits import unpack

if TYPE_CHECKING:
    from compress.verify.entry import Entry
    from compress.verify.reader import Matrix

ENDINGS = ("qweight", "scales", "qzeros")
_FIELDS = {
    "quant_method": "gptq", "sym": True, "desc_act": False, "checkpoint_format": "gptq",
    "pack_dtype": "int32",
}  # fmt: skip
_RULE = re.compile(r"[+-]:\(\?:([\w.\\|]{1,1000000})\)\$")  # names joined by |: no repetition
_MERGED = {"qkv": "qkv_proj", "gate_up": "gate_up_proj"}
Expected = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


def schemes(quantization: Mapping[str, Any], stored: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Bits, group size ("row" is one group a row) and symmetry of every module with codes.

    Raises:
        ArtifactError: a field or a rule that the page does not describe.
    """
    known = {*_FIELDS, "bits", "group_size", "lm_head", "dynamic"}
    if odd := sorted(set(quantization) - known):
        raise ArtifactError(f"config.json: {shown(odd[0])}: no field that is written here.")
    for key, value in _FIELDS.items():
        if quantization.get(key) != value:
            raise ArtifactError(
                f"config.json: {key} {shown(repr(quantization.get(key)))}; {value!r} is verified."
            )
    found = {}
    for name in stored:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            told = told_to(quantization, module)
            if told is None:
                raise ArtifactError(f"config.json: dynamic says that {module} is dense.")
            size = "row" if told.get("group_size") == -1 else told.get("group_size")
            found[module] = {"bits": told.get("bits"), "group_size": size, "sym": True}
    return found


def told_to(quantization: Mapping[str, Any], module: str) -> dict[str, Any] | None:
    """What vLLM and GPTQModel take a linear for: bits and group size; None for a dense one.

    Raises:
        ArtifactError: a rule that is no list of names, or says something else.
    """
    base = {key: quantization.get(key) for key in ("bits", "group_size")}
    dynamic = quantization.get("dynamic", {})
    for pattern, fields in dynamic.items() if isinstance(dynamic, dict) else [("", None)]:
        if not _RULE.fullmatch(pattern) or not isinstance(fields, dict):
            raise ArtifactError(f"config.json: {shown(pattern)}: no rule that is written here.")
        if set(fields) != (set() if pattern[0] == "-" else {"bits", "group_size"}):
            raise ArtifactError(f"config.json: the rule {shown(pattern)} says {shown(fields)}.")
        if re.match(pattern[2:], module):
            return None if pattern[0] == "-" else dict(fields)
    return base


def misnamed(
    quantization: Mapping[str, Any], anatomy: Anatomy, matrices: Mapping[str, Matrix]
) -> Iterator[str]:
    """Linears that readers take for what they are not, by their own names or fused."""
    if quantization.get("lm_head") is not (anatomy.head.name in matrices):
        yield f"config.json: lm_head {quantization.get('lm_head')}, {anatomy.head.name} is not"
    for linear in anatomy.linears:
        told = told_to(quantization, linear.name)
        if (told is not None) is not (linear.name in matrices):
            yield f"config.json: {linear.name} is {'dense' if told else 'quantized'}, by its rules"
        if linear.fused in _MERGED:
            merged = f"{linear.name.rpartition('.')[0]}.{_MERGED[linear.fused]}"
            if told_to(quantization, merged) != told:
                yield f"config.json: other rules for {merged} than for {linear.name}"


def expected(name: str, matrix: Matrix) -> Expected:
    """The stored tensors of one linear."""
    rows, columns, bits = matrix.rows, matrix.columns, matrix.bits
    groups = columns // matrix.group_size
    return {
        f"{name}.qweight": (("I32",), (columns * bits // 32, rows)),
        f"{name}.qzeros": (("I32",), (groups, rows * bits // 32)),
        f"{name}.scales": (("F16",), (groups, rows)),
        f"{name}.g_idx": (("I32",), (columns,)),
    }


def scales(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The scales [O, G] of one linear."""
    return np.ascontiguousarray(entries[f"{name}.scales"].floats().T)


def weights(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The weights [O, I]: ``(code - (stored zero + 1)) * scale``, group by `g_idx`."""
    group = entries[f"{name}.g_idx"].array()
    zeros = unpack(entries[f"{name}.qzeros"].array(), matrix.bits, matrix.rows).T + np.float32(1)
    words = np.ascontiguousarray(entries[f"{name}.qweight"].array().T)
    weight = unpack(words, matrix.bits, matrix.columns).astype(np.float32)
    weight -= zeros[:, group]
    weight *= scales(entries, name, matrix)[:, group]
    return weight


def problems(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> Iterator[str]:
    """Zeros off the middle, columns out of order."""
    zeros = unpack(entries[f"{name}.qzeros"].array(), matrix.bits, matrix.rows)
    if (zeros != 2 ** (matrix.bits - 1) - 1).any():
        yield f"{name}.qzeros: not all are {2 ** (matrix.bits - 1) - 1}, the middle less one"
    if (entries[f"{name}.g_idx"].array() != np.arange(matrix.columns) // matrix.group_size).any():
        yield f"{name}.g_idx: not the column divided by {matrix.group_size}"

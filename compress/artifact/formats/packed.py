"""`packed`, our own layout: every width, group and symmetry a recipe can say, in plain safetensors.

A quantized matrix M [O, I] is stored as

    M.codes    int32    [O, ceil(I·bits/32)]   packed along the columns; every row starts on a word
    M.scales   float16  [O, G]                 exact: scales are chosen among values float16 holds
    M.zeros    int32    [ceil(O·bits/32), G]   packed along the rows; only on an asymmetric grid
    M.outliers     int32    [K]  columns that stay as they are when its inputs are rounded
    M.input_scale  float32  [1]  of all its inputs, where it is known beforehand

and means ``(code - zero) * scale``, zero being ``2**(bits-1)`` on a symmetric grid. Codes of
floating numbers are packed alike; their scales are told in `formats.floats`. A pruned matrix has a
mask and what it keeps where that is smaller, see `formats.sparse`. All other tensors stay as they
are. Byte by byte, with an example: docs/formats.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import floats, sparse
from compress.artifact.formats.input_scheme import (
    INPUT_SUFFIXES,
    decode_inputs,
    encode_inputs,
    read_inputs,
    stored_inputs,
)
from compress.artifact.formats.matrix import (
    Matrix,
    Scheme,
    Specs,
    assemble,
    disassemble,
    grid,
    on_grid,
)
from compress.errors import ArtifactError, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import Checkpoint

METHOD = "compress"
VERSION = 1
_MAX_GROUP = 2**24  # columns; no linear is as wide
SUFFIXES: tuple[str, ...] = (
    ".codes", ".scales", ".zeros", ".global_scale", *sparse.SUFFIXES, *INPUT_SUFFIXES,
)  # fmt: skip
_SOMETIMES = ("inputs", "numbers", "scale_rows")  # of a scheme: told where an artifact needs it
_SCALES = {"fp8": "F16", "nvfp4": "F8_E4M3", "mxfp4": "U8"}


def refusals(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
    """What this format cannot hold: nothing."""
    return []


def encode(
    name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of the matrix `name`. Codes are [O, I], also for a Conv1D linear."""
    if rounded.numbers != "int":
        yield from _encode_floats(name, rounded)
        return
    codes, scales, zeros = disassemble(name, rounded)
    yield f"{name}.codes", codes
    yield f"{name}.scales", scales.half()
    if zeros is not None:
        yield f"{name}.zeros", zeros
    yield from encode_inputs(name, rounded)


def encode_pruned(
    name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype, *, kept: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of a pruned matrix, of which `kept` weights stay."""
    pruned: dict[str, Tensor] = {}
    plain = rounded.numbers == "int" and rounded.inputs is None  # others are for fast products
    rows, columns = rounded.codes.shape
    if plain and sparse.codes_pay(rows, columns, kept, rounded.bits):
        zero = rounded.zero.repeat_interleave(rounded.group_size, 1)
        pruned = dict(sparse.encode_codes(name, rounded.codes, zero, rounded.bits, kept))
    for stored_name, tensor in encode(name, rounded, linear, dtype):
        if pruned and stored_name == f"{name}.codes":
            yield from pruned.items()
        else:
            yield stored_name, tensor


def _encode_floats(name: str, rounded: Rounded) -> Iterator[tuple[str, Tensor]]:
    from compress.kernels.pack import pack

    scales, over = floats.stored_scales(name, rounded)
    yield f"{name}.codes", pack(rounded.codes, rounded.bits)
    yield f"{name}.scales", scales if scales.itemsize == 1 else scales.half()
    if over is not None:
        yield f"{name}.global_scale", over
    yield from encode_inputs(name, rounded)


def config(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """The `quantization_config`: the commonest scheme, and what differs from it by name."""
    ordinary = Scheme(4, 64, True)
    needed = [
        field
        for field in _SOMETIMES
        if any(getattr(s, field) != getattr(ordinary, field) for s in schemes.values())
    ]
    told = {name: _told(scheme, needed) for name, scheme in schemes.items()}
    default = _told(Counter(schemes.values()).most_common(1)[0][0], needed) if schemes else {}
    differing = {
        name: {key: value for key, value in fields.items() if value != default[key]}
        for name, fields in told.items()
    }
    return {
        "quant_method": METHOD,
        "format": "packed",
        "version": VERSION,
        "default": default,
        "exceptions": {name: fields for name, fields in differing.items() if fields},
    }


def _told(scheme: Scheme, needed: Sequence[str]) -> dict[str, Any]:
    """A scheme as config.json has it: what old readers know, and what this artifact needs."""
    return {k: v for k, v in asdict(scheme).items() if k not in _SOMETIMES or k in needed}


def matrices(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Matrix]:
    """Find the quantized matrices: tensors say which, `quantization_config` says how.

    Raises:
        ArtifactError: a newer version, a malformed scheme, or codes without scales.
    """
    if quantization.get("version") != VERSION:
        raise ArtifactError(
            f"config.json: packed version {quantization.get('version')!r}; this program reads "
            f"version {VERSION}. Use the program that wrote the artifact, or a newer one."
        )
    default, exceptions = quantization.get("default", {}), quantization.get("exceptions", {})
    inner = exceptions.values() if isinstance(exceptions, dict) else [None]
    if not all(isinstance(table, dict) for table in (default, *inner)):
        raise ArtifactError("config.json: quantization_config's schemes are not tables.")
    codes = [
        name.removesuffix(ending)
        for name in checkpoint.tensors
        for ending in (".kept_codes", ".codes")
        if name.endswith(ending)
    ]
    if lost := sorted(set(exceptions) - set(codes)):
        raise ArtifactError(f"{lost[0]}.codes: missing, though config.json gives it a scheme.")
    return {
        name: _matrix(checkpoint, name, {**default, **exceptions.get(name, {})}) for name in codes
    }


def stored(name: str, matrix: Matrix) -> Specs:
    """Names, dtypes and shapes of the tensors that hold a matrix."""
    kind = floats.kind_of(matrix.scheme)
    specs: Specs = {f"{name}.codes": (("I32",), matrix.code_words)}
    if matrix.kept_words:
        specs = {
            f"{name}.mask": (("I32",), (matrix.rows, sparse.mask_words(matrix.columns))),
            f"{name}.kept_codes": (("I32",), (matrix.kept_words,)),
        }
    scale_shape = (matrix.scale_rows, matrix.groups)
    specs[f"{name}.scales"] = (_SCALES.get(kind or "", "F16"),), scale_shape
    if kind == "nvfp4":
        specs[f"{name}.global_scale"] = (("F32",), (1,))
    if not matrix.scheme.sym:
        specs[f"{name}.zeros"] = (("I32",), matrix.zero_words)
    return specs | stored_inputs(name, matrix)


def decode(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
    """Rebuild the matrix `name` from its stored tensors."""
    from compress.kernels.pack import unpack

    scales, zeros = tensors[f"{name}.scales"], tensors.get(f"{name}.zeros")
    if matrix.kept_words:
        scale, zero = grid(name, matrix, scales, zeros)
        everywhere = zero.repeat_interleave(matrix.scheme.group_size, 1)
        codes = sparse.decode_codes(name, tensors, everywhere, matrix.scheme.bits)
        rounded = on_grid(matrix, codes, scale, zero)
    elif floats.kind_of(matrix.scheme):
        found = unpack(tensors[f"{name}.codes"], matrix.scheme.bits, matrix.columns)
        rounded = floats.rebuilt(name, matrix, found, scales, tensors.get(f"{name}.global_scale"))
    else:
        rounded = assemble(name, matrix, tensors[f"{name}.codes"], scales, zeros)
    return replace(rounded, inputs=decode_inputs(name, matrix, tensors))


def _matrix(checkpoint: Checkpoint, name: str, fields: Mapping[str, Any]) -> Matrix:
    try:
        scheme = Scheme(**{**fields, "inputs": read_inputs(fields.get("inputs"))})
        sizes = scheme.bits in (2, 3, 4, 8) and 0 < scheme.group_size <= _MAX_GROUP
        types = [type(v) for k, v in vars(scheme).items() if k != "inputs"]
        known = sizes and types == [int, int, bool, str, int] and _is_known(scheme)
    except TypeError:
        known = False
    if not known:
        raise ArtifactError(
            f"config.json: quantization_config gives {name} the scheme {shown(fields)}. It must "
            "have bits (2, 3, 4 or 8), group_size (a number of columns) and sym, may have inputs, "
            "numbers and scale_rows, and nothing else; docs/formats.md says which go together."
        )
    scales, mask, kept = (
        checkpoint.tensors.get(f"{name}.{part}") for part in ("scales", "mask", "kept_codes")
    )
    codes = mask if kept and mask else checkpoint.tensors.get(f"{name}.codes")
    if scales is None or codes is None or len(scales.shape) != 2 or len(codes.shape) != 2:
        found = "missing" if scales is None else "not a matrix, or its codes or mask are not"
        raise ArtifactError(f"{name}.scales: {found}. Write the artifact again.")
    listed = checkpoint.tensors.get(f"{name}.outliers")
    outliers = listed.shape[0] if listed is not None and len(listed.shape) == 1 else 0
    columns = scales.shape[1] * scheme.group_size
    return Matrix(scheme, codes.shape[0], columns, outliers, math.prod(kept.shape) if kept else 0)


def _is_known(scheme: Scheme) -> bool:
    """Whether numbers and scales go together."""
    if scheme.numbers == "int":
        return scheme.scale_rows == 1
    return floats.sound(scheme)

"""`compressed-tensors`: what transformers and vLLM open. Integers here, floats in `ct_floats`.

pack-quantized holds 4 and 8 bits. Tensors of a quantized linear M: ``M.weight_packed``,
``M.weight_scale``, ``M.weight_shape`` and, on an asymmetric grid, ``M.weight_zero_point``. The
format counts integers from ``-2**(bits-1)``, yet stores them shifted up by as much, so the stored
bits are our unsigned codes. Only keys that old readers know are written: they refuse a scheme with
an unknown key. int-quantized is in `int8`.

Source: compressed-tensors 0.20, compressors/pack_quantized; docs/formats.md has the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import ct_floats, floats, int8, refusing
from compress.artifact.formats.input_scheme import InputScheme
from compress.artifact.formats.matrix import (
    Matrix,
    Scheme,
    Specs,
    assemble,
    check_stored,
    disassemble,
)
from compress.errors import ArtifactError, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import Checkpoint

METHOD = "compressed-tensors"
SUFFIXES: tuple[str, ...] = (
    ".weight_packed",
    ".weight_scale",
    ".weight_shape",
    ".weight_zero_point",
    *ct_floats.SUFFIXES,
)
PACKED, INT8, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
WIDTHS = (4, 8)  # other widths were packed in two ways over the years, and vLLM reads neither
_FLOATS = ("F32", "F16", "BF16")
_INT8_INPUTS = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None,
    "dynamic": True,
}  # fmt: skip


def refusals(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
    """Say what this format cannot hold of the planned (or finished) schemes, one line a reason."""
    columns = {linear.name: linear.in_features for linear in (*anatomy.linears, anatomy.head)}
    linears = {name: scheme for name, scheme in schemes.items() if name in columns}
    reasons = chain(
        refusing.uneven(anatomy),
        refusing.widths(schemes, WIDTHS),
        int8.one_scale_a_row(linears, columns),
        int8.listed_outliers(schemes),
        _thresholds(schemes),
        refusing.embedding(anatomy, schemes),
        refusing.conv1d(anatomy, schemes),
        refusing.fusions(anatomy, schemes),
    )
    return refusing.messages(METHOD, reasons)


def _thresholds(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    if odd := [n for n, s in schemes.items() if s.inputs is not None and s.inputs.threshold]:
        yield f"{odd[0]}{refusing.more(odd)}: outlier columns; bnb-int8 holds them"


def encode(
    name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of the linear `name`."""
    import torch

    if rounded.numbers != "int":
        yield from ct_floats.encode(name, rounded, dtype)
        return
    if rounded.inputs is not None:
        yield f"{name}.weight", int8.signed(rounded)
        yield f"{name}.weight_scale", rounded.scale.to(dtype)  # exact
        return
    codes, scales, zeros = disassemble(name, rounded)
    yield f"{name}.weight_packed", codes
    yield f"{name}.weight_scale", scales.to(dtype)  # exact; readers compute weights in its dtype
    yield f"{name}.weight_shape", torch.tensor(rounded.codes.shape, dtype=torch.int64)
    if zeros is not None:
        yield f"{name}.weight_zero_point", zeros


def config(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> dict[str, Any] | None:
    """The `quantization_config`: one group a scheme, every dense linear ignored by name."""
    if not schemes:
        return None  # readers fail on an empty list of groups; nothing quantized is a dense folder
    columns = {linear.name: linear.in_features for linear in (*anatomy.linears, anatomy.head)}
    targets: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        per_row = scheme.group_size == columns[name] and scheme.scale_rows < 2
        key = replace(scheme, group_size=-1) if per_row else scheme
        targets.setdefault(key, []).append(name)
    formats = {scheme: _format(scheme) for scheme in targets}
    mixed = len(set(formats.values())) > 1
    groups = {
        f"group_{number}": {
            # full names: "Linear" would catch a head that a reader calls otherwise than the file
            "targets": names,
            "weights": _weights(scheme),
            "input_activations": _activations(scheme.inputs),
            "output_activations": None,
            **({"format": formats[scheme]} if mixed else {}),
        }
        for number, (scheme, names) in enumerate(targets.items())
    }
    return {
        "quant_method": METHOD,
        "format": MIXED if mixed else next(iter(formats.values())),
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": _dense_linears(anatomy, schemes),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _format(scheme: Scheme) -> str:
    """The format, as the library calls it, of a matrix."""
    kind = floats.kind_of(scheme)
    return ct_floats.FORMATS[kind] if kind else INT8 if scheme.inputs else PACKED


def _activations(inputs: InputScheme | None) -> dict[str, Any] | None:
    if inputs is None or inputs.numbers != "int8":
        return ct_floats.activations(inputs)
    return dict(_INT8_INPUTS)


def _weights(scheme: Scheme) -> dict[str, Any]:
    if scheme.numbers != "int":
        return ct_floats.weights(scheme)
    per_row = scheme.group_size == -1
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.sym,
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else scheme.group_size,
        "dynamic": False,
        "actorder": None,  # act order with static groups leaves no trace on disk
    }


def _dense_linears(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
    """Every module with a plain matrix, the embedding apart; a tied head is a linear of its own."""
    matrices = [
        name.removesuffix(".weight")
        for name, shape in anatomy.tensors.items()
        if name.endswith(".weight") and len(shape) == 2
    ]
    names = dict.fromkeys([*matrices, anatomy.head.name])
    return [name for name in names if name not in schemes and name != anatomy.embedding]


def matrices(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Matrix]:
    """Find the quantized linears: tensors say which, `config_groups` say how.

    Raises:
        ArtifactError: a format or scheme of compressed-tensors that is not read here.
    """
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not all(map(_is_group, groups.values())):
        raise ArtifactError(
            "config.json: quantization_config.config_groups is not a table of groups, each with "
            "targets (names) and weights (a table)."
        )
    _check_formats(quantization.get("format"), groups)
    names = [
        name.removesuffix(".weight_packed")
        for name, info in checkpoint.tensors.items()
        if name.endswith(".weight_packed") and info.dtype != "U8"  # which floats are
    ]
    shape_names = [f"{name}.weight_shape" for name in names]
    check_stored(dict.fromkeys(shape_names, (("I64",), (2,))), checkpoint.tensors)
    shapes = checkpoint.read_many(shape_names)
    found = {name: _matrix(name, shapes[f"{name}.weight_shape"].tolist(), groups) for name in names}
    for name, info in checkpoint.tensors.items():
        if name.endswith(".weight") and info.dtype == "I8":
            module = name.removesuffix(".weight")
            found[module] = _product(module, info.shape, groups)
    floating = ct_floats.shapes(checkpoint.tensors)
    return found | {
        name: ct_floats.matrix(name, shape, _group_for(name, groups))
        for name, shape in floating.items()
    }


def _check_formats(said: Any, groups: Mapping[str, Mapping[str, Any]]) -> None:
    known = (PACKED, INT8, MIXED, *ct_floats.FORMATS.values())
    for found in (said, *(group.get("format", said) for group in groups.values())):
        if found not in known:
            raise ArtifactError(
                f"config.json: compressed-tensors format {shown(found)}. Read are "
                f"{', '.join(known)}."
            )
        if MIXED not in (said, found) and found != said:
            raise ArtifactError(
                f"config.json: compressed-tensors format {shown(said)}, but one of its groups says "
                f"{shown(found)}. Write the artifact again."
            )


def _is_group(group: Any) -> bool:
    targets = group.get("targets", []) if isinstance(group, dict) else None
    named = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    return named and isinstance(group.get("weights") or {}, dict)


def _matrix(name: str, shape: list[int], groups: Mapping[str, Mapping[str, Any]]) -> Matrix:
    weights = _group_for(name, groups).get("weights") or {}
    sizes = {"channel": shape[1], "group": weights.get("group_size")}
    size, bits = sizes.get(str(weights.get("strategy"))), weights.get("num_bits")
    if (
        bits not in WIDTHS
        or type(bits) is not int
        or weights.get("type", "int") != "int"
        or weights.get("actorder") in ("group", "dynamic")
        or type(size) is not int
        or size < 1
        or min(shape) < 1
        or shape[1] % size
    ):
        raise ArtifactError(
            f"config.json: the scheme of {name} is not one that is read: {shown(weights)} for the "
            f"shape {shape}. Read are 4 and 8 bits, type int, strategy channel or group with a "
            "group_size that divides the columns, actorder null, weight or static."
        )
    return Matrix(Scheme(bits, size, bool(weights.get("symmetric", True))), *shape)


def _product(name: str, shape: tuple[int, ...], groups: Mapping[str, Mapping[str, Any]]) -> Matrix:
    """A linear of int8 products, of a stored shape and as its group of `config_groups` tells."""
    group = _group_for(name, groups)
    weights, rounds = group.get("weights") or {}, group.get("input_activations")
    known = (
        len(shape) == 2
        and min(shape) > 0
        and weights.get("strategy") == "channel"
        and (weights.get("num_bits"), weights.get("type", "int")) == (8, "int")
        and weights.get("symmetric", True) is True
        and isinstance(rounds, dict)
        and all(rounds.get(key, value) == value for key, value in _INT8_INPUTS.items())
        and rounds.get("dynamic") is True
    )
    if not known:
        raise ArtifactError(
            f"config.json: the scheme of {name} is not one that is read: {shown(weights)}, inputs "
            f"{shown(rounds)}, for the shape {list(shape)}. Read are int8 weights of strategy "
            "channel with int8 inputs of strategy token, dynamic."
        )
    return Matrix(Scheme(8, shape[1], True, InputScheme("int8")), *shape)


def _group_for(name: str, groups: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The group that names a module exactly, else by pattern, else by class."""
    kinds: tuple[Callable[[str], bool], ...] = (
        lambda target: target == name,
        lambda target: target.startswith("re:") and _matches(target[3:], name),
        lambda target: target == "Linear",
    )
    for names_it in kinds:
        for group in groups.values():
            if any(names_it(target) for target in group.get("targets", ())):
                return group
    raise ArtifactError(f"config.json: no group of config_groups targets {name}, which is packed.")


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern of config.json matches a name, for patterns that cannot take for ever.

    A repeated group, or many repetitions, can try every way to cut a name into pieces.

    Raises:
        ArtifactError: the pattern is no pattern, or not of that tame kind.
    """
    tame = len(re.findall(r"(?<!\\)[*+{]", pattern)) <= 3 and not re.search(r"\)[*+?{]", pattern)
    try:
        if tame and len(name) <= 200:
            return re.match(pattern, name) is not None
    except re.error:
        pass
    raise ArtifactError(
        f"config.json: the target {shown('re:' + pattern)} is not read here: at most three of * "
        "and +, none behind a group. Name the linears instead."
    )


def stored(name: str, matrix: Matrix) -> Specs:
    """Names, dtypes and shapes of the tensors that hold a matrix."""
    if matrix.scheme.numbers != "int":
        return ct_floats.stored(name, matrix)
    if matrix.scheme.inputs is not None:
        return {
            f"{name}.weight": (("I8",), (matrix.rows, matrix.columns)),
            f"{name}.weight_scale": (_FLOATS, (matrix.rows, 1)),
        }
    specs: Specs = {
        f"{name}.weight_packed": (("I32",), matrix.code_words),
        f"{name}.weight_scale": (_FLOATS, (matrix.rows, matrix.groups)),
        f"{name}.weight_shape": (("I64",), (2,)),
    }
    if not matrix.scheme.sym:
        specs[f"{name}.weight_zero_point"] = (("I32",), matrix.zero_words)
    return specs


def decode(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
    """Rebuild the linear `name` from its stored tensors."""
    if matrix.scheme.numbers != "int":
        return ct_floats.decode(name, matrix, tensors)
    if matrix.scheme.inputs is not None:
        scales = tensors[f"{name}.weight_scale"]
        return int8.rebuilt(name, matrix, tensors[f"{name}.weight"], scales)
    zeros = tensors.get(f"{name}.weight_zero_point")
    packed, scales = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"]
    return assemble(name, matrix, packed, scales, zeros)

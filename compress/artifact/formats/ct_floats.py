"""Floating numbers in compressed-tensors: float-quantized, nvfp4- and mxfp4-pack-quantized.

                            float-quantized           nvfp4                     mxfp4
    M.weight                e4m3 [O, I]
    M.weight_packed                                   uint8 [O, I/2]            uint8 [O, I/2]
    M.weight_scale          [O, 1], [U, G] or [1]     e4m3 [O, I/16]            uint8 [O, I/32]
    M.weight_global_scale                             float32 [1]
    M.input_scale           [1], where it is static
    M.input_global_scale                              float32 [1], with rounded inputs

Scales of float-quantized have the dtype of the model. A global scale is what its other scales are
divided by. Source: compressed-tensors 0.20; docs/formats.md has the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compress.artifact.formats import floats
from compress.artifact.formats.input_scheme import InputScheme, decode_inputs
from compress.artifact.formats.matrix import Matrix, Scheme, Specs
from compress.errors import ArtifactError, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import TensorInfo

FORMATS: dict[floats.Kind, str] = {
    "fp8": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
}
SUFFIXES: tuple[str, ...] = (".weight_global_scale", ".input_scale", ".input_global_scale")
_FLOATS = ("F32", "F16", "BF16")
_STRATEGIES = {0: "tensor", 1: "channel"}  # by the rows that share a scale
_SCALE_DTYPES = {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8"}


def encode(name: str, rounded: Rounded, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of the linear `name`; `dtype` is that of the model."""
    import torch

    from compress.kernels.pack import pack

    scales, over = floats.stored_scales(name, rounded)
    if rounded.bits == 8:
        yield f"{name}.weight", rounded.codes.view(torch.float8_e4m3fn)
        scales = scales.to(dtype)  # exact; readers compute weights in its dtype
        yield f"{name}.weight_scale", scales.flatten() if rounded.scale_rows == 0 else scales
    else:
        yield f"{name}.weight_packed", pack(rounded.codes, 4).view(torch.uint8)
        yield f"{name}.weight_scale", scales
    if over is not None:
        yield f"{name}.weight_global_scale", over
    if rounded.inputs is not None and rounded.inputs.scale is not None:
        scale = torch.tensor([rounded.inputs.scale])
        if over is None:
            yield f"{name}.input_scale", scale.to(dtype)
        else:
            yield f"{name}.input_global_scale", scale.reciprocal()


def stored(name: str, matrix: Matrix) -> Specs:
    """Names, dtypes and shapes of the tensors that hold a matrix."""
    kind, inputs = floats.kind_of(matrix.scheme), matrix.scheme.inputs
    specs: Specs = {}
    scales = (matrix.scale_rows, matrix.groups)
    if kind == "fp8":
        specs[f"{name}.weight"] = (("F8_E4M3",), (matrix.rows, matrix.columns))
        shape = (1,) if matrix.scheme.scale_rows == 0 else scales
        specs[f"{name}.weight_scale"] = (_FLOATS, shape)
    else:
        specs[f"{name}.weight_packed"] = (("U8",), (matrix.rows, matrix.columns // 2))
        specs[f"{name}.weight_scale"] = (("F8_E4M3" if kind == "nvfp4" else "U8",), scales)
    if kind == "nvfp4":
        specs[f"{name}.weight_global_scale"] = (("F32",), (1,))
    if inputs is not None and inputs.static:
        if kind == "nvfp4":
            specs[f"{name}.input_global_scale"] = (("F32",), (1,))
        else:
            specs[f"{name}.input_scale"] = (_FLOATS, (1,))
    return specs


def decode(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
    """Rebuild the linear `name` from its stored tensors."""
    import torch

    from compress.kernels.pack import unpack

    if matrix.scheme.bits == 8:
        codes = tensors[f"{name}.weight"].view(torch.uint8)
    else:
        words = tensors[f"{name}.weight_packed"].contiguous().view(torch.int32)
        codes = unpack(words, 4, matrix.columns)
    over = tensors.get(f"{name}.weight_global_scale")
    rounded = floats.rebuilt(name, matrix, codes, tensors[f"{name}.weight_scale"], over)
    return replace(rounded, inputs=decode_inputs(name, matrix, tensors))


def weights(scheme: Scheme) -> dict[str, Any]:
    """What a group of `config_groups` says of weights."""
    kind = floats.kind_of(scheme)
    told: dict[str, Any] = {"num_bits": scheme.bits, "type": "float", "symmetric": True}
    if kind != "fp8":
        strategy = "tensor_group" if kind == "nvfp4" else "group"
        told |= {"strategy": strategy, "group_size": scheme.group_size}
        told |= {"scale_dtype": _SCALE_DTYPES[str(kind)]}
    else:
        told |= {"strategy": _STRATEGIES.get(scheme.scale_rows, "block"), "group_size": None}
        if scheme.scale_rows > 1:
            told |= {"block_structure": [scheme.scale_rows, scheme.group_size]}
    return {**told, "dynamic": False, "actorder": None}


def activations(inputs: InputScheme | None) -> dict[str, Any] | None:
    """What a group says of its inputs."""
    if inputs is None:
        return None
    bits = 4 if inputs.numbers == "fp4_e2m1" else 8
    told: dict[str, Any] = {"num_bits": bits, "type": "float", "symmetric": True}
    if bits == 4:
        kind = "nvfp4" if inputs.static else "mxfp4"
        told |= {"strategy": "tensor_group" if inputs.static else "group"}
        told |= {"group_size": inputs.group_size, "dynamic": "local" if inputs.static else True}
        return {**told, "scale_dtype": _SCALE_DTYPES[kind]}
    strategy = "tensor" if inputs.static else "group" if inputs.group_size else "token"
    size = inputs.group_size or None
    return {**told, "strategy": strategy, "group_size": size, "dynamic": not inputs.static}


def shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    """The floating matrices among stored tensors, and their shapes [O, I]."""
    found: dict[str, tuple[int, ...]] = {}
    for name, info in tensors.items():
        module, _, ending = name.rpartition(".")
        if ending == "weight" and info.dtype == "F8_E4M3":
            found[module] = info.shape
        elif ending == "weight_packed" and info.dtype == "U8":
            found[module] = (*info.shape[:-1], *(2 * n for n in info.shape[-1:]))
    return found


def matrix(name: str, shape: tuple[int, ...], group: Mapping[str, Any]) -> Matrix:
    """A floating linear, of a stored shape and as its group of `config_groups` tells.

    Raises:
        ArtifactError: a scheme that is not read here, or one that its shape is not of.
    """
    told, rounds = group.get("weights") or {}, group.get("input_activations")
    inputs = _input_scheme(rounds)
    scheme = _weight_scheme(told, shape[-1] if shape else 0, inputs)
    fits = len(shape) == 2 and min(shape) > 0 and scheme.group_size > 0
    agrees = (
        floats.sound(scheme)
        and _same(told, weights(scheme))
        and (rounds is None or _same(rounds, activations(inputs) or {}))
    )
    if not (agrees and fits) or shape[1] % scheme.group_size:
        raise ArtifactError(
            f"config.json: the scheme of {name} is not one that is read: {shown(told)}, inputs "
            f"{shown(rounds)}, for the shape {list(shape)}. Read are those that "
            "docs/formats.md lists."
        )
    return Matrix(scheme, *shape)


def _weight_scheme(told: Mapping[str, Any], columns: int, inputs: InputScheme | None) -> Scheme:
    """The scheme that a table may mean; whether it does is for `weights` to say."""
    size, block = told.get("group_size"), told.get("block_structure")
    if told.get("num_bits") == 4:
        return Scheme(4, size if type(size) is int else 0, True, inputs, "fp4_e2m1")
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block):
        return Scheme(8, block[1], True, inputs, "fp8_e4m3", block[0])
    rows = 0 if told.get("strategy") == "tensor" else 1
    return Scheme(8, columns, True, inputs, "fp8_e4m3", rows)


def _input_scheme(told: Mapping[str, Any] | None) -> InputScheme | None:
    """The scheme of inputs that a table may mean; whether it does is for `activations` to say."""
    if told is None:
        return None
    static = told.get("dynamic") in (False, None, "local")
    size = told.get("group_size")
    numbers = "fp4_e2m1" if told.get("num_bits") == 4 else "fp8_e4m3"
    return InputScheme(numbers, static=static, group_size=size if type(size) is int else 0)


def _same(told: Mapping[str, Any], meant: Mapping[str, Any]) -> bool:
    """Whether a table means what another one does; what tells of its making is passed over."""
    defaults = {"symmetric": True, "dynamic": False, "group_size": None, "actorder": None}
    found = {**defaults, "scale_dtype": meant.get("scale_dtype"), **told}
    if found["actorder"] in ("weight", "static"):
        found["actorder"] = None
    meant = {**defaults, **meant}
    return all(
        found.get(key) == meant.get(key)
        for key in {*found, *meant} - {"observer", "observer_kwargs", "zp_dtype"}
    )

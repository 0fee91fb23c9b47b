"""Which matrices a config.json says are quantized, and how, by the rules of docs/formats.md.

What the page does not describe is refused: verified are the artifacts that are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from compress.errors import ArtifactError
from compress.verify import floats, gguf, gptq, int8, rounding
from compress.verify.rounding import Rounding

METHODS = {
    "compress": "packed", "compressed-tensors": "compressed-tensors", "gptq": "gptq",
    "gguf": "gguf",
    "bitsandbytes": "bnb-int8",
}  # fmt: skip
_WIDTHS = {"packed": (2, 3, 4, 8), "compressed-tensors": (4, 8), "gptq": (4, 8), "gguf": (4, 8)}
_SOMETIMES = ("inputs", "numbers", "scale_rows")
_CT_FORMATS = {
    "int": "pack-quantized",
    int8.KIND: "int-quantized",
    **floats.FORMATS,
}  # by what weights become
_MIXED = "mixed-precision"
_GROUP_FIELDS = {"targets", "weights", "input_activations", "output_activations"}
_WEIGHT_FIELDS = {
    "num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "actorder",
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """How a matrix is quantized; `group_size` "row" is one group a row."""

    bits: int
    group_size: int | Literal["row"]
    sym: bool
    kind: str = "int"  # or fp8, nvfp4, mxfp4
    scale_rows: int = 1  # neighbouring rows that share a scale; 0: all
    inputs: Rounding | None = None


def format_of(quantization: Any) -> str:
    """The format that a `quantization_config` stands for; dense where there is none.

    Raises:
        ArtifactError: a method that is not written here.
    """
    if quantization is None:
        return "dense"
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in METHODS:
        raise ArtifactError(
            f"config.json: quant_method {method!r}; {', '.join(METHODS)} and dense are verified."
        )
    return METHODS[method]


def read_schemes(
    format: str, quantization: Mapping[str, Any], stored: Iterable[str]
) -> dict[str, Scheme]:
    """The scheme of every quantized module.

    Args:
        format: as `format_of` found it.
        quantization: the `quantization_config`.
        stored: names of the stored tensors; in `packed`, those with codes are quantized.

    Raises:
        ArtifactError: something that the page does not describe.
    """
    return _READERS[format](quantization, stored)


def _packed(quantization: Mapping[str, Any], stored: Iterable[str]) -> dict[str, Scheme]:
    """Every module with codes has the default scheme, but for what its exception says."""
    if quantization.get("format") != "packed" or quantization.get("version") != 1:
        told = ", ".join(f"{key} {quantization.get(key)!r}" for key in ("format", "version"))
        raise ArtifactError(f"config.json: {told}; packed version 1 is verified.")
    default, exceptions = quantization.get("default"), quantization.get("exceptions")
    if not isinstance(default, dict) or not isinstance(exceptions, dict):
        raise ArtifactError("config.json: default and exceptions are not tables.")
    if not all(isinstance(fields, dict) for fields in exceptions.values()):
        raise ArtifactError("config.json: an exception is not a table.")
    modules = [
        name.removesuffix(ending)
        for name in stored
        for ending in (".kept_codes", ".codes")
        if name.endswith(ending)
    ]
    if lost := sorted(exceptions.keys() - set(modules)):
        raise ArtifactError(f"{lost[0]}.codes: missing, config.json gives it a scheme.")
    return {name: _packed_scheme(name, {**default, **exceptions.get(name, {})}) for name in modules}


def _packed_scheme(name: str, fields: dict[str, Any]) -> Scheme:
    more = {key: fields.pop(key) for key in _SOMETIMES if key in fields}
    kind = floats.kind(name, {**fields, **more})
    inputs = rounding.told(name, more.get("inputs"))
    scheme = _scheme(name, fields, "packed")
    return replace(scheme, kind=kind, scale_rows=more.get("scale_rows", 1), inputs=inputs)


def _compressed_tensors(
    quantization: Mapping[str, Any], stored: Iterable[str]
) -> dict[str, Scheme]:
    """Each group names its linears in full."""
    groups = quantization.get("config_groups")
    format = quantization.get("format")
    if format not in (*_CT_FORMATS.values(), _MIXED) or not isinstance(groups, dict):
        raise ArtifactError(
            f"config.json: format {format!r}; verified are {', '.join(_CT_FORMATS.values())} and "
            f"{_MIXED}, with config_groups."
        )
    found: dict[str, Scheme] = {}
    for label, told_group in groups.items():
        group, told = told_group, format
        if format == _MIXED and isinstance(group, dict):  # each then says its own
            told, group = group.get("format"), {k: v for k, v in group.items() if k != "format"}
        scheme = _group_scheme(label, group)
        if told != _CT_FORMATS[scheme.kind]:
            raise ArtifactError(
                f"config.json: {label} is of format {told!r}, its weights {scheme.kind}."
            )
        if twice := sorted(found.keys() & set(group["targets"])):
            raise ArtifactError(f"config.json: two groups target {twice[0]}.")
        found.update(dict.fromkeys(group["targets"], scheme))
    return found


def _gptq(quantization: Mapping[str, Any], stored: Iterable[str]) -> dict[str, Scheme]:
    found = gptq.schemes(quantization, stored)
    return {name: _scheme(name, fields, "gptq") for name, fields in found.items()}


def _gguf(quantization: Mapping[str, Any], stored: Iterable[str]) -> dict[str, Scheme]:
    found = gguf.schemes(quantization, stored)
    return {name: _scheme(name, fields, "gguf") for name, fields in found.items()}


def _bnb_int8(quantization: Mapping[str, Any], stored: Iterable[str]) -> dict[str, Scheme]:
    """Every linear with an SCB; one threshold for all."""
    inputs = Rounding("int8", int8.bnb_threshold(quantization))
    scheme = Scheme(8, "row", sym=True, kind=int8.KIND, inputs=inputs)
    modules = [name.removesuffix(".SCB") for name in stored if name.endswith(".SCB")]
    return dict.fromkeys(modules, scheme)


def _group_scheme(label: str, group: Any) -> Scheme:
    if not isinstance(group, dict) or set(group) != _GROUP_FIELDS:
        raise ArtifactError(f"config.json: {label} must have {', '.join(sorted(_GROUP_FIELDS))}.")
    weights = group["weights"]
    if int8.is_group(weights, group["input_activations"]) and group["output_activations"] is None:
        return replace(Scheme(8, "row", sym=True), kind=int8.KIND, inputs=Rounding("int8"))
    if not is_names(group["targets"]):
        raise ArtifactError(f"config.json: targets of {label} are not names.")
    if (floating := floats.told_weights(weights)) is not None:
        return _floating_scheme(label, group, floating)
    if not isinstance(weights, dict) or set(weights) != _WEIGHT_FIELDS:
        fields = ", ".join(sorted(_WEIGHT_FIELDS))
        raise ArtifactError(f"config.json: weights of {label} must have {fields}.")
    by_row = weights["strategy"] == "channel"
    if (
        any(group[key] is not None for key in ("input_activations", "output_activations"))
        or (weights["type"], weights["dynamic"], weights["actorder"]) != ("int", False, None)
        or weights["strategy"] not in ("channel", "group")
        or by_row is not (weights["group_size"] is None)
    ):
        raise ArtifactError(f"config.json: {label} is a scheme that is not written here: {group}.")
    scheme = {
        "bits": weights["num_bits"],
        "group_size": "row" if by_row else weights["group_size"],
        "sym": weights["symmetric"],
    }
    return _scheme(label, scheme, "compressed-tensors")


def _floating_scheme(
    label: str, group: Mapping[str, Any], meant: tuple[str, int | str, int]
) -> Scheme:
    kind, size, rows = meant
    inputs, told = None, group["input_activations"]
    if told is not None:
        inputs = floats.told_inputs(told)
    if group["output_activations"] is not None or (told is not None and inputs is None):
        raise ArtifactError(f"config.json: {label} is a scheme that is not written here: {group}.")
    scheme = _scheme(
        label, {"bits": 8 if kind == "fp8" else 4, "group_size": size, "sym": True}, "packed"
    )
    return replace(scheme, kind=kind, scale_rows=rows, inputs=rounding.told(label, inputs))


def _scheme(where: str, fields: Mapping[str, Any], format: str) -> Scheme:
    size, bits, sym = (fields.get(key) for key in ("group_size", "bits", "sym"))
    sized = size == "row" or (type(size) is int and size > 0)
    known = type(bits) is int and bits in _WIDTHS[format]
    if len(fields) != 3 or not (sized and known and isinstance(sym, bool)):
        widths = ", ".join(map(str, _WIDTHS[format]))
        raise ArtifactError(
            f"config.json: {where} has the scheme {dict(fields)}. A scheme is bits ({widths}), "
            "group_size (a number of columns) and sym."
        )
    return Scheme(**fields)


def is_names(value: Any) -> bool:
    """Whether a value of a config is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_READERS: dict[str, Callable[[Mapping[str, Any], Iterable[str]], dict[str, Scheme]]] = {
    "packed": _packed,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "bnb-int8": _bnb_int8,
    "gguf": _gguf,
    "dense": lambda quantization, stored: {},
}

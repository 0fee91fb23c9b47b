"""`gptq`, checkpoint format v1: what vLLM, GPTQModel and transformers with it open.

A quantized linear M [O, I] is stored as

    M.qweight  int32    [I·bits/32, O]   packed along the columns, then turned
    M.qzeros   int32    [G, O·bits/32]   packed along the rows; zero - 1 in every field
    M.scales   float16  [G, O]
    M.g_idx    int32    [I]              i // group_size; act order of static groups leaves none

Readers of v1 add the one to each zero that writers took off, so a zero of 0 cannot be said, and the
asymmetric grids are left out. Whatever differs from the commonest scheme is told in `dynamic`, by
patterns that vLLM and GPTQModel both match: vLLM asks for fused names (qkv_proj), too.

Source: GPTQModel, nn_modules/qlinear (pack) and utils/model.py (v1 to v2); docs/formats.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import refusing
from compress.artifact.formats.matrix import Matrix, Scheme, Specs, assemble, disassemble
from compress.errors import ArtifactError, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import Checkpoint

METHOD = "gptq"
BESIDE = "quantize_config.json"  # where readers looked before config.json held it
SUFFIXES: tuple[str, ...] = (".qweight", ".qzeros", ".scales", ".g_idx")
WIDTHS = (4, 8)  # vLLM's; at 2 bits a third of the readers, at 3 they disagree about the words
_MERGED = {"qkv": "qkv_proj", "gate_up": "gate_up_proj"}  # what vLLM calls linears that it fuses


def refusals(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
    """Say what this format cannot hold of the planned (or finished) schemes, one line a reason."""
    reasons = chain(
        refusing.uneven(anatomy),
        refusing.beyond_integers(schemes),
        refusing.widths(schemes, WIDTHS),
        _asymmetric(schemes),
        refusing.embedding(anatomy, schemes),
        refusing.conv1d(anatomy, schemes),
        refusing.fusions(anatomy, schemes),
        _odd_sizes(anatomy, schemes),
    )
    return refusing.messages(METHOD, reasons)


def _asymmetric(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    if odd := [name for name, scheme in schemes.items() if not scheme.sym]:
        yield (
            f"{odd[0]}{refusing.more(odd)}: an asymmetric grid; version 1 stores zero - 1, which "
            "for a zero of 0 spills into its neighbour"
        )


def _odd_sizes(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    known = {name for name, scheme in schemes.items() if scheme.bits in WIDTHS}
    linears = [x for x in (*anatomy.linears, anatomy.head) if x.name in known]
    odd = [x for x in linears if (x.in_features | x.out_features) % (32 // schemes[x.name].bits)]
    if odd:
        size = f"{odd[0].out_features} × {odd[0].in_features}"
        yield (
            f"{odd[0].name}{refusing.more([x.name for x in odd])}: {size}; both must fill whole "
            f"words, of {32 // schemes[odd[0].name].bits} codes"
        )


def encode(
    name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of the linear `name`."""
    import torch

    from compress.kernels.pack import pack

    codes, scales, _ = disassemble(name, rounded)
    columns = torch.arange(rounded.codes.shape[1], dtype=torch.int32)
    yield f"{name}.qweight", codes.T.contiguous()
    yield f"{name}.qzeros", pack(rounded.zero.T - 1, rounded.bits)
    yield f"{name}.scales", scales.T.half().contiguous()
    yield f"{name}.g_idx", columns // rounded.group_size


def config(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> dict[str, Any] | None:
    """The `quantization_config`: the commonest scheme, and patterns for what differs from it."""
    if not schemes:
        return None  # nothing quantized is a dense folder
    linears = {x.name: x for x in (*anatomy.linears, anatomy.head)}
    told = {name: _told(scheme, linears[name]) for name, scheme in schemes.items()}
    bits, size = Counter(told.values()).most_common(1)[0][0]
    differing: dict[tuple[int, int] | None, list[Linear]] = {}
    for linear in anatomy.linears:
        if told.get(linear.name) != (bits, size):
            differing.setdefault(told.get(linear.name), []).append(linear)
    head = told.get(anatomy.head.name)
    if head not in (None, (bits, size)):
        differing.setdefault(head, []).append(anatomy.head)
    dynamic = {
        ("-:" if scheme is None else "+:") + _pattern(named): (
            {} if scheme is None else {"bits": scheme[0], "group_size": scheme[1]}
        )
        for scheme, named in differing.items()
    }
    return {
        "quant_method": METHOD,
        "bits": bits,
        "group_size": size,
        "sym": True,
        "desc_act": False,
        "lm_head": head is not None,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
    }


def _told(scheme: Scheme, linear: Linear) -> tuple[int, int]:
    """Bits and group size as this format says them: -1 is one group a row."""
    size = -1 if scheme.group_size == linear.in_features else scheme.group_size
    return scheme.bits, size


def _pattern(linears: list[Linear]) -> str:
    """A pattern that matches these linears, and the ones vLLM makes of them, and no others."""
    names = dict.fromkeys(linear.name for linear in linears)
    for linear in linears:
        if linear.fused in _MERGED:
            names[f"{linear.name.rpartition('.')[0]}.{_MERGED[linear.fused]}"] = None
    return f"(?:{'|'.join(map(re.escape, names))})$"


def matrices(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Matrix]:
    """Find the quantized linears: tensors say which, the config and its `dynamic` say how.

    Raises:
        ArtifactError: a variant of the format that is not read here.
    """
    rules = _rules(quantization)
    found = {}
    for stored_name, info in checkpoint.tensors.items():
        if stored_name.endswith(".qweight"):
            name = stored_name.removesuffix(".qweight")
            if len(info.shape) != 2:
                raise ArtifactError(f"{stored_name}: not a matrix. Write the artifact again.")
            found[name] = _matrix(name, info.shape, _fields(name, quantization, rules))
    return found


def _rules(quantization: Mapping[str, Any]) -> dict[str, Any]:
    """The `dynamic` of a config: names in full, joined as `_pattern` joins them.

    Raises:
        ArtifactError: another checkpoint format or order, or rules that are not read here.
    """
    told = {
        "checkpoint_format": quantization.get("checkpoint_format", "gptq"),
        "desc_act": quantization.get("desc_act", False),
        "sym": quantization.get("sym", True),
        "pack_dtype": quantization.get("pack_dtype", "int32"),
    }
    read = {"checkpoint_format": "gptq", "desc_act": False, "sym": True, "pack_dtype": "int32"}
    if odd := [f"{key} {told[key]!r}" for key in read if told[key] != read[key]]:
        raise ArtifactError(
            f"config.json: {shown(', '.join(odd))} is not read here. Read are checkpoint_format "
            "gptq (version 1), desc_act false, sym true, pack_dtype int32."
        )
    dynamic = quantization.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise ArtifactError("config.json: dynamic is no table of patterns.")
    rules: dict[str, Any] = {}
    for pattern, fields in dynamic.items():
        if not pattern.startswith("-:"):
            rules.update(dict.fromkeys(_names(pattern.removeprefix("+:")), fields))
    return rules


def _names(pattern: str) -> list[str]:
    """The names that `_pattern` has joined. Patterns of strangers are refused, not matched."""
    inner = pattern.removeprefix("(?:").removesuffix(")$")
    names = [re.sub(r"\\(.)", r"\1", name) for name in inner.split("|")]
    if pattern != f"(?:{'|'.join(map(re.escape, names))})$":
        raise ArtifactError(
            f"config.json: the rule {shown(pattern)} of dynamic is not read here: names in full, "
            "as this program writes them. Name the linears instead."
        )
    return names


def _fields(
    name: str, quantization: Mapping[str, Any], rules: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    base = {key: quantization.get(key) for key in ("bits", "group_size")}
    rule = rules.get(name, {})
    return {**base, **rule} if isinstance(rule, dict) else {}


def _matrix(name: str, shape: tuple[int, ...], fields: Mapping[str, Any]) -> Matrix:
    bits, size = fields.get("bits"), fields.get("group_size")
    known = set(fields) == {"bits", "group_size"} and type(bits) is int and bits in WIDTHS
    columns = shape[0] * 32 // bits if known and isinstance(bits, int) else 0
    size = columns if size == -1 else size
    whole = columns and shape[1] and shape[1] * int(bits or 0) % 32 == 0
    if not whole or type(size) is not int or size < 1 or columns % size:
        raise ArtifactError(
            f"config.json: the scheme of {name} is not one that is read: {shown(fields)} for "
            f"qweight {list(shape)}. Read are 4 and 8 bits, rows that fill whole words, and a "
            "group_size that divides the columns, or -1."
        )
    return Matrix(Scheme(int(bits or 0), size, True), shape[1], columns)


def stored(name: str, matrix: Matrix) -> Specs:
    """Names, dtypes and shapes of the tensors that hold a matrix."""
    rows, words = matrix.code_words
    zero_words = matrix.rows * matrix.scheme.bits // 32
    return {
        f"{name}.qweight": (("I32",), (words, rows)),
        f"{name}.qzeros": (("I32",), (matrix.groups, zero_words)),
        f"{name}.scales": (("F16",), (matrix.groups, matrix.rows)),
        f"{name}.g_idx": (("I32",), (matrix.columns,)),
    }


def decode(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
    """Rebuild the linear `name` from its stored tensors.

    Raises:
        ArtifactError: zeros off the middle, or columns whose groups are not in order.
    """
    import torch

    from compress.kernels.pack import unpack

    bits = matrix.scheme.bits
    zeros = unpack(tensors[f"{name}.qzeros"], bits, matrix.rows)
    if bool((zeros != (1 << (bits - 1)) - 1).any()):
        raise ArtifactError(
            f"{name}.qzeros: zeros off the middle of the grid, which config.json calls symmetric. "
            "Write the artifact again."
        )
    columns = torch.arange(matrix.columns, dtype=torch.int32)
    if not torch.equal(tensors[f"{name}.g_idx"], columns // matrix.scheme.group_size):
        raise ArtifactError(
            f"{name}.g_idx: columns in an order of their own (act order with dynamic groups), "
            "which is not read here. Read are groups in order."
        )
    codes = tensors[f"{name}.qweight"].T.contiguous()
    return assemble(name, matrix, codes, tensors[f"{name}.scales"].T.contiguous(), None)

"""What a folder must hold, by docs/formats.md and its config.json alone, against what it holds.

The dense model's names and shapes are those of transformers' own architecture; a quantized matrix
replaces one of its weights by the tensors of the format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import anatomy
from compress.anatomy import Shape
from compress.errors import ArtifactError, ModelError
from compress.families import FAMILIES, Family
from compress.verify import caching, floats, gguf, gptq, int8, rounding, sparse
from compress.verify.entry import Entry
from compress.verify.reader import (
    Expected,
    Matrix,
    Reading,
    layout_of,
    read_entries,
    read_json,
)
from compress.verify.schemes import Scheme, format_of, is_names, read_schemes
from compress.verify.sparse import Masked

_FLOATS = ("F32", "F16", "BF16")
_ENDINGS = {  # of codes, scales, zeros
    "packed": ("codes", "scales", "zeros"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_zero_point"),
    "gptq": gptq.ENDINGS,
    "bnb-int8": int8.ENDINGS["bnb-int8"],
}
_SIZES = (
    "hidden_size", "n_embd", "head_dim", "intermediate_size", "ffn_dim", "n_inner", "vocab_size",
    "n_positions",
)  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """What config.json promises."""

    config: Mapping[str, Any]
    quantization: Mapping[str, Any]
    format: str
    family: Family
    shapes: Mapping[str, Shape]  # of the dense model, by full name
    matrices: Mapping[str, Matrix]
    masked: Mapping[str, Masked]


def open_folder(folder: Path, also: frozenset[str] = frozenset()) -> Reading:
    """Open an artifact that is laid out as its format's page says; reads headers only.

    Args:
        folder: the artifact.
        also: dense tensors that may be there although the architecture has none of that name.

    Raises:
        ArtifactError: it is laid out otherwise; the message names all that is missing, extra or of
            another dtype or shape.
    """
    config = read_json(folder / "config.json")
    quantization = config.pop("quantization_config", None)
    fields: dict[str, Any] = {}
    if format_of(quantization) == "gguf":
        entries, fields = gguf.read_file(folder, config)
    else:
        entries = read_entries(folder)
    plan = _plan(config, quantization, entries)
    also -= plan.shapes.keys()  # what the model has lies there dense only where it is not quantized
    cached = caching.numbers(plan.format, plan.quantization)
    wanted = _expected(plan, entries) | (_caches(plan, shared=cached[1]) if cached else {})
    if problems := [*_differences(wanted, entries, also), *_misnamed(plan)]:
        raise ArtifactError("\n".join(problems))
    shapes = {**plan.shapes, **{name: entries[name].shape for name in also & entries.keys()}}
    try:
        picture = anatomy.read(config, shapes)
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    if problems := [*_misdescribed(folder, plan, picture, fields)]:
        raise ArtifactError("\n".join(problems))
    kind = cached[0] if cached else None
    return Reading(folder, plan.format, config, entries, plan.matrices, picture, kind, plan.masked)


def told_scheme(reading: Reading, module: str) -> str:
    """How a matrix is stored, in words."""
    matrix = reading.matrices.get(module)
    if matrix is None:
        return "dense"
    size = "row" if matrix.group_size == matrix.columns else matrix.group_size
    grid = f"{matrix.bits} bits g{size} {'asym' if matrix.zeros else 'sym'}"
    if matrix.kind not in ("int", int8.KIND):
        grid = f"{matrix.kind} g{size}{floats.shared(reading.entries, matrix)}"
    return grid + rounding.in_words(reading.entries, module, matrix)


def _plan(config: Mapping[str, Any], quantization: Any, entries: Mapping[str, Entry]) -> _Plan:
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ArtifactError(f"config.json: model_type {config.get('model_type')!r} is unknown.")
    format = format_of(quantization)
    shapes = _architecture(config, family, entries)
    schemes = read_schemes(format, quantization or {}, entries)
    matrices = {
        name: _matrix(name, scheme, format, family, shapes) for name, scheme in schemes.items()
    }
    masked = _masked(format, family, shapes, entries)
    if twice := sorted(masked.keys() & matrices.keys()):
        raise ArtifactError(f"{twice[0]}: stored as codes, and as weights with a mask.")
    return _Plan(config, quantization or {}, format, family, shapes, matrices, masked)


def _masked(
    format: str, family: Family, shapes: Mapping[str, Shape], entries: Mapping[str, Entry]
) -> dict[str, Masked]:
    """The weights that lie there with a mask; `packed` alone has such."""
    found: dict[str, Masked] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if format == "packed" and len(shape) == 2 and sparse.has_weights(entries, module):
            turned = _turned(family, module)
            found[module] = Masked(*(shape[::-1] if turned else shape), turned)
    return found


def _turned(family: Family, name: str) -> bool:
    """Whether a family stores a matrix as [I, O]."""
    return family.transposed and name not in (family.embedding, family.head)


def _architecture(
    config: Mapping[str, Any], family: Family, entries: Mapping[str, Entry]
) -> dict[str, Shape]:
    """Names and shapes of the dense tensors of a model, as transformers builds it."""
    import torch

    from compress.surgery.walk import empty_model

    _check_sizes(config, entries)
    try:
        model = empty_model(config, torch.float32)
    except Exception as error:  # transformers raises nothing more precise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"config.json: transformers builds no model from it ({reason})."
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    head = {  # transformers calls every head lm_head
        family.head + name.removeprefix("lm_head"): shapes.pop(name)
        for name in [name for name in shapes if name.startswith("lm_head.")]
    }
    if config.get("tie_word_embeddings", model.config.tie_word_embeddings):
        head.pop(f"{family.head}.weight", None)
    return shapes | head


def _check_sizes(config: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """Refuse sizes that the stored tensors cannot have: building a model of them takes memory."""
    blocks = config.get("num_hidden_layers", config.get("n_layer", 0))
    if not isinstance(blocks, int) or not 0 <= blocks <= len(entries):
        raise ArtifactError(
            f"config.json: promises {blocks} blocks; {len(entries)} tensors are stored."
        )
    largest = 16 * max((max(entry.shape, default=1) for entry in entries.values()), default=1)
    for key in _SIZES:  # 16 codes of 2 bits lie in a word
        if isinstance(config.get(key), int) and config[key] > largest:
            raise ArtifactError(f"config.json: {key} {config[key]}; no stored tensor is so large.")


def _matrix(
    name: str, scheme: Scheme, format: str, family: Family, shapes: Mapping[str, Shape]
) -> Matrix:
    shape = shapes.get(f"{name}.weight", ())
    if len(shape) != 2:
        raise ArtifactError(f"{name}: quantized, and no matrix of this model.")
    turned = _turned(family, name)
    rows, columns = shape[::-1] if turned else shape
    size = columns if scheme.group_size == "row" else scheme.group_size
    if columns % size:
        raise ArtifactError(f"{name}: groups of {size} do not divide its {columns} columns.")
    known = gguf.endings(scheme.bits, sym=scheme.sym) if format == "gguf" else _ENDINGS[format]
    codes, scales, zeros = (f"{name}.{ending}" for ending in known)
    if scheme.kind in ("fp8", int8.KIND) and format == "compressed-tensors":
        codes = f"{name}.weight"
    return Matrix(
        rows, columns, scheme.bits, size, turned, codes, scales, None if scheme.sym else zeros,
        scheme.kind, scheme.scale_rows, scheme.inputs,
    )  # fmt: skip


def _caches(plan: _Plan, *, shared: str) -> Expected:
    """The scales of keys and values that the folder must hold."""
    try:
        picture = anatomy.read(plan.config, plan.shapes)
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    return caching.expected(plan.format, picture, plan.config, shared, _scale_dtype(plan))


def _scale_dtype(plan: _Plan) -> str:
    told = str(plan.config.get("dtype", plan.config.get("torch_dtype", "bfloat16")))
    model = {"float32": "F32", "float16": "F16"}.get(told, "BF16")
    return "F16" if plan.format == "packed" else model


def _expected(plan: _Plan, entries: Mapping[str, Entry]) -> Expected:
    """Every tensor that the folder must hold, but for scales of keys and values."""
    scales = _scale_dtype(plan)
    found: Expected = {
        name: (_FLOATS, shape)
        for name, shape in plan.shapes.items()
        if name.removesuffix(".weight") not in (plan.matrices.keys() | plan.masked.keys())
    }
    for name, masked in plan.masked.items():
        found |= sparse.expected(name, masked, entries)
    for name, matrix in plan.matrices.items():
        found |= rounding.expected(name, matrix, entries)
        if layout := layout_of(plan.format, matrix):
            found |= layout.expected(name, matrix)
            continue
        groups = matrix.columns // matrix.group_size
        found |= _codes(name, matrix, entries)
        found[matrix.scales] = (scales,), (matrix.rows, groups)
        if matrix.zeros:
            found[matrix.zeros] = ("I32",), (_words(matrix.rows, matrix.bits), groups)
        if plan.format == "compressed-tensors":
            found[f"{name}.weight_shape"] = ("I64",), (2,)
    return found


def _codes(name: str, matrix: Matrix, entries: Mapping[str, Entry]) -> Expected:
    """What holds the codes of a matrix: all of them, or those that a mask keeps."""
    if sparse.has_codes(entries, name):
        return sparse.expected_codes(name, matrix.rows, matrix.columns, entries)
    return {matrix.codes: (("I32",), (matrix.rows, _words(matrix.columns, matrix.bits)))}


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)


def _differences(
    expected: Expected, entries: Mapping[str, Entry], also: frozenset[str]
) -> Iterator[str]:
    yield from (f"{name}: missing" for name in expected if name not in entries)
    for name, entry in entries.items():
        if name in expected:
            dtypes, shape = expected[name]
            if entry.dtype not in dtypes or entry.shape != shape:
                yield (
                    f"{name}: {entry.dtype} {list(entry.shape)}, by config.json it is "
                    f"{' or '.join(dtypes)} {list(shape)}"
                )
        elif name not in also:
            yield f"{name}: extra, by config.json there is no such tensor"


def _misdescribed(
    folder: Path, plan: _Plan, picture: anatomy.Anatomy, fields: Mapping[str, Any]
) -> Iterator[str]:
    """What other people's formats say of the model, against the model."""
    if plan.format == "gptq":
        yield from gptq.misnamed(plan.quantization, picture, plan.matrices)
    if plan.format == "bnb-int8":
        linears = {linear.name for linear in (*picture.linears, picture.head)}
        yield from int8.misnamed(plan.quantization, linears, plan.matrices)
    if plan.format == "gguf":
        words = read_json(folder / "tokenizer.json")
        yield from gguf.misdescribed(fields, plan.config, words, picture.vocab_size)


def _misnamed(plan: _Plan) -> Iterator[str]:
    """compressed-tensors: `ignore` names every dense linear, a tied head too, and no other."""
    if plan.format != "compressed-tensors":
        return
    told: Any = plan.quantization.get("ignore")
    if not is_names(told):
        yield "config.json: ignore is not a list of names"
        return
    ignored: set[str] = set(told)
    endings = tuple(f".{ending}.weight" for ending in plan.family.linears)
    linears = {name.removesuffix(".weight") for name in plan.shapes if name.endswith(endings)}
    dense = {*linears, plan.family.head} - plan.matrices.keys()
    yield from (f"config.json: {name} is dense, not in ignore" for name in sorted(dense - ignored))
    both = sorted(ignored & plan.matrices.keys())
    yield from (f"config.json: {name} is quantized and in ignore" for name in both)

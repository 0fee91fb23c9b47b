"""Who will open an artifact, and why not: told from shapes and schemes, before it is made.

What is said of others' software was read in their sources (vLLM's mixed-precision kernels, the
`compressed-tensors` package) or measured; docs/serving.md says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compress.anatomy import Anatomy
from compress.artifact.formats import FORMATS
from compress.artifact.formats.floats import Kind, kind_of
from compress.artifact.formats.kv import KVScheme
from compress.artifact.formats.matrix import Matrix
from compress.artifact.gguf_header import flaws
from compress.errors import ModelError
from compress.runtime.settings import read_settings

# Of `runtime.rope`, which needs torch; a test holds them equal.
ROTATIONS = ("default", "linear", "llama3")
_EXPORT = "compressed-tensors"  # what engines other than ours open
_BNB = "bnb-int8"
_TERMS = {  # on which transformers opens what it has a reader of its own for
    _BNB: "with bitsandbytes 0.50, also on a CPU",
    "gptq": "with the gptqmodel package; not tried here",
    "gguf": "told gguf_file; it expands the weights",
    "dense": "as any model folder",
}
_GPUS: Mapping[Kind, str] = {
    "fp8": "compute capability 8.9 and up multiplies it, from 7.5 on its weights only",
    "nvfp4": "Blackwell (10.0) multiplies it, from 7.5 on its weights only",
    "mxfp4": "Blackwell (10.0) multiplies it and its inputs, from 8.0 on its weights only",
}
_ZEROS = "a plain folder; zeros make nothing faster there"
_UNEVEN = (
    "builds all blocks alike, and these differ in width; it would open what restructure makes with "
    "uniform: true"
)
_CPU_MULTIPLE = 32  # of every width, for vLLM's W4A16 product on a CPU


@dataclass(frozen=True)
class Consumer:
    """One program that may open the artifact.

    loads: whether it will; where it will not, `reasons` says why, where it will, on what terms.
    """

    name: str
    loads: bool
    reasons: tuple[str, ...] = ()


def consumers(
    anatomy: Anatomy,
    config: Mapping[str, Any],
    matrices: Mapping[str, Matrix],
    format: str,
    cached: KVScheme | None = None,
) -> tuple[Consumer, ...]:
    """Ask every consumer.

    Args:
        anatomy: of the teacher.
        config: its ``config.json``.
        matrices: what will be quantized, by module name.
        format: of the artifact.
        cached: how keys and values will be rounded.
    """
    uneven = len(set(anatomy.channels)) > 1
    closed = (_UNEVEN,) if uneven else tuple(_unopened(anatomy, matrices, format))
    opened = format in (_BNB, *_TERMS) and not uneven
    told = {
        "compress": tuple(_ours(anatomy, config)),
        "transformers": () if opened else closed or tuple(_transformers(matrices)),
        "vLLM on CUDA": closed or (*_vllm_cuda(anatomy, matrices), *_vllm_caches(cached)),
        "vLLM on a CPU": closed or (*_vllm_cpu(anatomy, matrices), *_vllm_caches(cached)),
        "llama.cpp": tuple(_llama_cpp(anatomy, config, matrices, format)),
    }
    asymmetric = not all(matrix.scheme.sym for matrix in matrices.values())
    told_to = ", told to with CompressedTensorsConfig(dequantize=True)" if asymmetric else ""
    if _kinds(matrices) & {"nvfp4", "mxfp4"}:
        told_to = ", in bfloat16"
    if format in (_EXPORT, "dense") and not matrices and cached is None:
        return _plain(told, "a plain folder" if format == "dense" else _ZEROS)
    terms = {
        "transformers": _TERMS.get(
            format, f"with the compressed-tensors package{told_to}; it expands the weights"
        ),
        "vLLM on CUDA": f"by its sources; not tried here{_on_which_gpus(matrices)}",
        "vLLM on a CPU": "vllm-cpu 0.32 on x86 opened such a folder",
        "llama.cpp": "xllamacpp 2026.10 on x86 opened such a folder",
    }
    return tuple(
        Consumer(name, not reasons, reasons or tuple(filter(None, [terms.get(name)])))
        for name, reasons in told.items()
    )


def _plain(told: Mapping[str, tuple[str, ...]], terms: str) -> tuple[Consumer, ...]:
    """Nothing is quantized: a folder as any other, whatever of it is zero."""
    return tuple(Consumer(name, not reasons, reasons or (terms,)) for name, reasons in told.items())


def _ours(anatomy: Anatomy, config: Mapping[str, Any]) -> Iterator[str]:
    try:
        read_settings(config, anatomy)
    except ModelError as error:
        yield f"refuses it: {error}"
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROTATIONS:
        yield f"runs the rotations {', '.join(ROTATIONS)}, not {kind}"


def _unopened(anatomy: Anatomy, matrices: Mapping[str, Matrix], format: str) -> Iterator[str]:
    """Why nobody but us opens a format, and whether the export would do."""
    if format in (_EXPORT, "gptq", "dense"):
        return
    if format == "gguf":
        yield "opens no GGUF files (0.32)"
        return
    if format == _BNB:
        yield "opens bitsandbytes on GPUs of NVIDIA; not tried here, and not on a CPU"
        return
    yield f"does not know the format {format}"
    schemes = {name: matrix.scheme for name, matrix in matrices.items()}
    refused = FORMATS[_EXPORT].refusals(anatomy, schemes)
    if not refused:
        yield f"would open artifact.format: {_EXPORT}"
    for reason in refused[:1]:
        more = f" (and {len(refused) - 1} more such)" if len(refused) > 1 else ""
        text = reason.removeprefix(f"artifact.format {_EXPORT}: ").partition(". Use ")[0]
        yield f"{_EXPORT}, which it opens, cannot hold {text}{more}"


def _llama_cpp(
    anatomy: Anatomy, config: Mapping[str, Any], matrices: Mapping[str, Matrix], format: str
) -> Iterator[str]:
    """Why llama.cpp does not open it, and whether an export would do."""
    if format == "gguf":
        return
    yield f"opens GGUF files only, not {format}"
    if not matrices:
        return  # ours hold integers
    schemes = {name: matrix.scheme for name, matrix in matrices.items()}
    refused = [*FORMATS["gguf"].refusals(anatomy, schemes), *flaws(config)]
    if not refused:
        yield "would open compress export --format gguf"
    for reason in refused[:1]:
        text = reason.removeprefix("artifact.format gguf: ").partition(". Use ")[0]
        yield f"gguf cannot hold {text}"


def _transformers(matrices: Mapping[str, Matrix]) -> Iterator[str]:
    schemes = {matrix.scheme for matrix in matrices.values()}
    if len(schemes) > 1 and not all(scheme.sym for scheme in schemes):
        yield "an asymmetric grid opens only with dequantize=True, which knows a single scheme"


def _kinds(matrices: Mapping[str, Matrix]) -> set[Kind]:
    """Of floating numbers."""
    return {kind for m in matrices.values() if (kind := kind_of(m.scheme)) is not None}


def _on_which_gpus(matrices: Mapping[str, Matrix]) -> str:
    """What its sources ask of a GPU for floating numbers."""
    return "".join(f"; {kind}: {_GPUS[kind]}" for kind in sorted(_kinds(matrices)))


def _vllm_cuda(anatomy: Anatomy, matrices: Mapping[str, Matrix]) -> Iterator[str]:
    for block in anatomy.blocks:
        blocks = [
            linear
            for linear in block.linears
            if linear.fused
            and linear.name in matrices
            and matrices[linear.name].scheme.scale_rows > 1
        ]
        if uneven := [x for x in blocks if x.out_features % matrices[x.name].scheme.scale_rows]:
            rows = matrices[uneven[0].name].scheme.scale_rows
            yield f"fused linears need blocks of {rows} rows to divide them: {uneven[0].name}"
            break
    if odd := [n for n, m in matrices.items() if m.scheme.bits == 8 and not m.scheme.sym]:
        yield f"its kernels take zero points at 4 bits, not at 8: {_named(odd)}"


def _vllm_cpu(anatomy: Anatomy, matrices: Mapping[str, Matrix]) -> Iterator[str]:
    """What its products for CPUs ask of every linear; fused ones count as one."""
    if kinds := sorted(_kinds(matrices)):
        yield f"has no product of {', '.join(kinds)} there: 0.32 found no kernel"
        return
    if all(m.scheme.inputs and m.scheme.inputs.numbers == "int8" for m in matrices.values()):
        return
    if wide := [name for name, m in matrices.items() if m.scheme.bits != 4]:
        yield f"its weight-only product takes 4 bits, not 8: {_named(wide)}"
    rows: dict[tuple[int | None, str], int] = {}
    for linear in (*anatomy.linears, anatomy.head):
        if linear.name in matrices:
            fused = (linear.block, linear.fused or linear.name)
            rows[fused] = rows.get(fused, 0) + linear.out_features
    widths = {m.columns for m in matrices.values()} | set(rows.values())
    if odd := sorted(width for width in widths if width % _CPU_MULTIPLE):
        yield f"its product needs widths that {_CPU_MULTIPLE} divides, not {odd[0]}"


def _vllm_caches(cached: KVScheme | None) -> Iterator[str]:
    """What its reader of compressed-tensors takes of keys and values."""
    if cached and cached.numbers != "fp8_e4m3":
        yield "it caches keys and values as fp8, not as int8, where scales are known beforehand"


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

"""`bnb-int8`, LLM.int8() as bitsandbytes stores it: what transformers opens with it, also on a CPU.

Tensors of a quantized linear M: ``M.weight``, ``M.SCB``, ``M.weight_format``; see `int8`. One
threshold holds for the whole model, and every linear that is not skipped by name is quantized.

Source: bitsandbytes 0.50, nn/modules.py (Linear8bitLt); docs/formats.md has the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import int8, refusing
from compress.artifact.formats.input_scheme import InputScheme
from compress.artifact.formats.matrix import Matrix, Scheme, Specs
from compress.errors import ArtifactError, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import Checkpoint

METHOD = "bitsandbytes"
FORMAT = "bnb-int8"
SUFFIXES: tuple[str, ...] = (".SCB", ".weight_format")
_LARGEST = 127.0  # what SCB, the largest weight of a row, stands for


def refusals(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
    """Say what this format cannot hold of the planned (or finished) schemes, one line a reason."""
    columns = {linear.name: linear.in_features for linear in (*anatomy.linears, anatomy.head)}
    linears = {name: scheme for name, scheme in schemes.items() if name in columns}
    reasons = chain(
        refusing.uneven(anatomy),
        _no_products(schemes),
        int8.one_scale_a_row(linears, columns),
        int8.listed_outliers(schemes),
        _thresholds(schemes),
        refusing.embedding(anatomy, schemes),
        refusing.conv1d(anatomy, schemes),
    )
    return refusing.messages(FORMAT, reasons)


def _no_products(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    if odd := [name for name, scheme in schemes.items() if not int8.is_product(scheme)]:
        yield f"{odd[0]}{refusing.more(odd)}: not of method llm_int8 or w8a8; it holds nothing else"


def _thresholds(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    found = sorted({s.inputs.threshold for s in schemes.values() if s.inputs is not None})
    if len(found) > 1:
        yield f"the thresholds {', '.join(f'{one:g}' for one in found)}; it holds one"


def encode(
    name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of the linear `name`."""
    import torch

    yield f"{name}.weight", int8.signed(rounded)
    yield f"{name}.SCB", rounded.scale.flatten() * _LARGEST  # exact: 8 bits times 7
    yield f"{name}.weight_format", torch.zeros((), dtype=torch.uint8)


def config(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> dict[str, Any] | None:
    """The `quantization_config`, with every dense linear skipped by name."""
    if not schemes:
        return None  # nothing quantized is a dense folder
    inputs = next(iter(schemes.values())).inputs or InputScheme("int8")
    skipped = [x.name for x in (*anatomy.linears, anatomy.head) if x.name not in schemes]
    return {
        "quant_method": METHOD,
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": inputs.threshold,
        "llm_int8_skip_modules": skipped,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "uint8",
    }


def matrices(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Matrix]:
    """Find the quantized linears: those that have an SCB.

    Raises:
        ArtifactError: 4 bits, a threshold that is none, or an SCB without its weight.
    """
    threshold = quantization.get("llm_int8_threshold", 6.0)
    sound = type(threshold) in (int, float) and 0 <= threshold < 1e9
    if quantization.get("load_in_8bit") is not True or not sound:
        raise ArtifactError(
            f"config.json: bitsandbytes with load_in_8bit {quantization.get('load_in_8bit')!r} and "
            f"llm_int8_threshold {shown(repr(threshold))}; read is load_in_8bit true, with a "
            "threshold of 0 or more."
        )
    inputs = InputScheme("int8", float(threshold))
    found = {}
    for stored_name in checkpoint.tensors:
        if stored_name.endswith(".SCB"):
            name = stored_name.removesuffix(".SCB")
            weight = checkpoint.tensors.get(f"{name}.weight")
            if weight is None or len(weight.shape) != 2 or 0 in weight.shape:
                raise ArtifactError(f"{name}.weight: missing, or no matrix, though it has an SCB.")
            rows, columns = weight.shape
            found[name] = Matrix(Scheme(8, columns, True, inputs), rows, columns)
    return found


def stored(name: str, matrix: Matrix) -> Specs:
    """Names, dtypes and shapes of the tensors that hold a matrix."""
    return {
        f"{name}.weight": (("I8",), (matrix.rows, matrix.columns)),
        f"{name}.SCB": (("F32",), (matrix.rows,)),
        f"{name}.weight_format": (("U8",), ()),
    }


def decode(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
    """Rebuild the linear `name` from its stored tensors.

    Raises:
        ArtifactError: a layout other than row by row, or a scale that is none.
    """
    if kind := int(tensors[f"{name}.weight_format"]):
        raise ArtifactError(f"{name}.weight_format: {kind}; read is 0, row by row.")
    scale = tensors[f"{name}.SCB"] / _LARGEST
    return int8.rebuilt(name, matrix, tensors[f"{name}.weight"], scale)

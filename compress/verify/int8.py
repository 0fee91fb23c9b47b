"""Products of int8 as docs/formats.md tells them: their bytes, and what they come to.

A row of inputs is rounded in steps of its largest magnitude / 127, halves to even; outlier columns,
left out of that, are multiplied as they are. Sums of products of codes are whole numbers, exact in
float64; then comes the scale of the row, the outlier columns, and last the scale of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ArtifactError

if TYPE_CHECKING:
    import torch

    from compress.verify.entry import Entry
    from compress.verify.reader import Expected, Matrix

KIND = "int8"
ENDINGS = {
    "compressed-tensors": ("weight", "weight_scale", ""),
    "bnb-int8": ("weight", "SCB", ""),
}
BNB = {
    "quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False,
    "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
    "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False, "bnb_4bit_quant_storage": "uint8",
}  # fmt: skip
_WEIGHTS = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None,
    "dynamic": False, "actorder": None,
}  # fmt: skip
_INPUTS = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None,
    "dynamic": True,
}  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")


def is_group(weights: Any, inputs: Any) -> bool:
    """Whether a group of `config_groups` says that its linears are products of int8."""
    return bool(weights == _WEIGHTS and inputs == _INPUTS)


def bnb_threshold(quantization: Mapping[str, Any]) -> float:
    """The threshold of bitsandbytes' config.

    Raises:
        ArtifactError: a field that the page does not describe.
    """
    fields = {**BNB, "llm_int8_threshold": None, "llm_int8_skip_modules": None}
    if set(quantization) != set(fields):
        odd = sorted(set(quantization) ^ set(fields))
        raise ArtifactError(f"config.json: {odd[0]}: not a field, or a missing one, of bnb-int8.")
    for key, value in BNB.items():
        if quantization[key] != value:
            raise ArtifactError(f"config.json: {key} {quantization[key]!r}; {value!r} is verified.")
    threshold = quantization["llm_int8_threshold"]
    if type(threshold) not in (int, float) or not 0 <= threshold < 1e9:
        raise ArtifactError(f"config.json: llm_int8_threshold {threshold!r} is no threshold.")
    return float(threshold)


def misnamed(
    quantization: Mapping[str, Any], linears: set[str], matrices: Mapping[str, Matrix]
) -> Iterator[str]:
    """Bitsandbytes quantizes every linear that `llm_int8_skip_modules` does not name."""
    told = quantization["llm_int8_skip_modules"]
    dense = linears - matrices.keys()
    if not isinstance(told, list) or set(map(str, told)) != dense:
        yield f"config.json: llm_int8_skip_modules is not exactly {sorted(dense)[:3]} …"


def expected(name: str, matrix: Matrix) -> Expected:
    """The tensors that hold a matrix."""
    found: Expected = {matrix.codes: (("I8",), (matrix.rows, matrix.columns))}
    if matrix.scales.endswith(".SCB"):
        found[matrix.scales] = ("F32",), (matrix.rows,)
        found[f"{name}.weight_format"] = ("U8",), ()
    else:
        found[matrix.scales] = _FLOATS, (matrix.rows, 1)
    return found


def scales(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The scales [O, 1]; SCB is 127 times that."""
    found = entries[matrix.scales].floats().reshape(-1, 1)
    return found / np.float32(127) if matrix.scales.endswith(".SCB") else found


def weights(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The weights [O, I]: code times scale."""
    codes = entries[matrix.codes].array().astype(np.float32)
    return codes * scales(entries, name, matrix)


def problems(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> Iterator[str]:
    """What in its numbers no writer means."""
    if matrix.scales.endswith(".SCB") and int(entries[f"{name}.weight_format"].array()) != 0:
        yield f"{name}.weight_format: not 0, row by row"


@dataclass(frozen=True, eq=False)
class Product:
    """A linear that multiplies int8; `surgery.walk` asks it for its outputs."""

    codes: torch.Tensor  # [O, I] float64, whole numbers
    scale: torch.Tensor  # [O] float32
    threshold: float
    columns: torch.Tensor | None  # listed outlier columns

    def multiply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What comes of inputs [..., I]: [..., O] float32. `weight` is not needed."""
        import torch

        rows = x.reshape(-1, x.shape[-1]).float()
        out = self._outliers(rows)
        inner = torch.where(out, torch.zeros(()), rows)
        step = inner.abs().max(dim=1, keepdim=True).values.clamp(min=2.0**-100) / 127
        sums = torch.round(inner / step).double() @ self.codes.T
        y = sums.float() * step
        if bool(out.any()):
            y = y + rows[:, out] @ self.codes[:, out].float().T
        return (y * self.scale).reshape(*x.shape[:-1], -1)

    def _outliers(self, rows: torch.Tensor) -> torch.Tensor:
        import torch

        if self.threshold:
            return (rows.abs() >= self.threshold).any(dim=0)
        found = torch.zeros(rows.shape[1], dtype=torch.bool)
        if self.columns is not None:
            found[self.columns] = True
        return found


def product(
    entries: Mapping[str, Entry], name: str, matrix: Matrix, weight: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> Product:  # fmt: skip
    """A matrix that multiplies int8, of its weights [O, I] and scales [O, 1]."""
    import torch

    inputs = matrix.inputs
    columns = None
    if inputs is not None and inputs.outliers:
        columns = torch.from_numpy(entries[f"{name}.outliers"].array()).long()
    codes = torch.from_numpy(np.rint(weight / scale)).double()  # exact: weights are codes · scale
    threshold = float(inputs.threshold) if inputs is not None else 0.0
    return Product(codes, torch.from_numpy(scale.reshape(-1).copy()), threshold, columns)


def multiplies(matrix: Matrix) -> bool:
    """Whether a matrix is int8 with one scale a row, and its inputs become int8."""
    whole = matrix.bits == 8 and matrix.group_size == matrix.columns and matrix.zeros is None
    integers = whole and matrix.kind in ("int", KIND)
    inputs = matrix.inputs
    return integers and inputs is not None and inputs.numbers == "int8" and not inputs.static

"""Matrices of int8 products, as formats store them that have a place for nothing else.

    int-quantized (compressed-tensors)         bnb-int8 (bitsandbytes)
    M.weight        int8    [O, I]             M.weight         int8     [O, I]
    M.weight_scale  model   [O, 1]             M.SCB            float32  [O]     127 times the scale
                                               M.weight_format  uint8    []      0: row by row

Codes are ours less 128. Both round inputs to int8, each token by its largest; only bitsandbytes
knows outlier columns, found in each batch anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from compress.artifact.formats import refusing
from compress.artifact.formats.input_scheme import InputScheme
from compress.artifact.formats.matrix import Matrix, Scheme
from compress.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from compress.kernels.grid import Rounded

MIDDLE = 128  # our code of zero


def is_product(scheme: Scheme) -> bool:
    """Whether a matrix of this scheme is multiplied by int8 inputs, as far as that says."""
    inputs = scheme.inputs
    return inputs is not None and inputs.numbers == "int8" and not inputs.static


def one_scale_a_row(schemes: Mapping[str, Scheme], columns: Mapping[str, int]) -> Iterator[str]:
    """Products of int8 with other weights than int8 rows of one scale."""
    wrong = [
        name
        for name, s in schemes.items()
        if is_product(s) and s != Scheme(8, columns[name], True, s.inputs)
    ]
    if wrong:
        yield (
            f"{wrong[0]}{refusing.more(wrong)}: inputs of int8 and other weights than int8 with "
            "one scale a row"
        )


def listed_outliers(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """Outlier columns that are listed: no reader takes a list."""
    if listed := [n for n, s in schemes.items() if s.inputs is not None and s.inputs.outliers]:
        yield f"{listed[0]}{refusing.more(listed)}: a static set of outlier columns"


def signed(rounded: Rounded) -> Tensor:
    """Our codes [O, I] uint8 as int8."""
    import torch

    return rounded.codes.view(torch.int8) ^ -MIDDLE


def rebuilt(name: str, matrix: Matrix, codes: Tensor, scale: Tensor) -> Rounded:
    """The matrix of int8 codes [O, I] and scales [O] or [O, 1], float.

    Raises:
        ArtifactError: a scale that is zero, infinite or no number.
    """
    import torch

    from compress.kernels.activations import Inputs
    from compress.kernels.grid import Rounded

    scale = scale.float().view(matrix.rows, 1)
    if wrong := int((~scale.isfinite() | (scale == 0)).sum()):
        raise ArtifactError(
            f"{name}: {wrong:,} of its scales are zero or not finite. Write the artifact again."
        )
    told = matrix.scheme.inputs or InputScheme("int8")
    return Rounded(
        (codes ^ -MIDDLE).view(torch.uint8), scale, torch.full_like(scale, MIDDLE).byte(),
        8, matrix.columns, sym=True, inputs=Inputs("int8", float(told.threshold)),
    )  # fmt: skip

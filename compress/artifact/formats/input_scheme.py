"""How a quantized linear rounds its inputs, as formats see it: a scheme and at most two tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from compress.artifact.formats.matrix import Matrix, Specs
    from compress.kernels.activations import Inputs
    from compress.kernels.grid import Rounded

OUTLIERS, SCALE = ".outliers", ".input_scale"
GLOBAL_SCALE = ".input_global_scale"  # its inverse, as compressed-tensors stores it for nvfp4
INPUT_SUFFIXES = (OUTLIERS, SCALE, GLOBAL_SCALE)


@dataclass(frozen=True, order=True)
class InputScheme:
    """The scheme; its fields mean what those of `kernels.activations.Inputs` do."""

    numbers: str
    threshold: float = 0.0
    outliers: bool = False  # whether a tensor lists columns that stay as they are
    static: bool = False  # whether a tensor holds the one scale of all inputs
    group_size: int = 0  # columns of a row that share a scale; 0: all


def input_scheme(inputs: Inputs | None) -> InputScheme | None:
    """The scheme of these inputs."""
    if inputs is None:
        return None
    listed, static = inputs.columns is not None, inputs.scale is not None
    return InputScheme(inputs.numbers, inputs.threshold, listed, static, inputs.group_size)


def read_inputs(fields: Any) -> InputScheme | None:
    """The scheme that a table of config.json says.

    Raises:
        TypeError: it says none.
    """
    if fields is None:
        return None
    scheme = InputScheme(**fields)
    sound = (
        scheme.numbers in ("int8", "fp8_e4m3", "fp4_e2m1")
        and type(scheme.group_size) is int
        and scheme.group_size >= 0
        and isinstance(scheme.threshold, (int, float))
        and 0 <= scheme.threshold < math.inf
        and type(scheme.outliers) is type(scheme.static) is bool
    )
    if not sound:
        raise TypeError("not a scheme of inputs")
    return scheme


def encode_inputs(name: str, rounded: Rounded) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that say how the linear `name` rounds its inputs."""
    import torch

    inputs = rounded.inputs
    if inputs is not None and inputs.columns is not None:
        yield name + OUTLIERS, inputs.columns.int()
    if inputs is not None and inputs.scale is not None:
        yield name + SCALE, torch.tensor([inputs.scale])


def stored_inputs(name: str, matrix: Matrix) -> Specs:
    """Names, dtypes and shapes of those tensors."""
    specs: Specs = {}
    scheme = matrix.scheme.inputs
    if scheme is not None and scheme.outliers:
        specs[name + OUTLIERS] = (("I32",), (matrix.outliers,))
    if scheme is not None and scheme.static:
        specs[name + SCALE] = (("F32",), (1,))
    return specs


def decode_inputs(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Inputs | None:
    """How the linear `name` rounds its inputs.

    Raises:
        ArtifactError: a column that it does not have, columns out of order, or no scale.
    """
    from compress.kernels.activations import Inputs

    scheme = matrix.scheme.inputs
    if scheme is None:
        return None
    listed, scale = tensors.get(name + OUTLIERS), tensors.get(name + SCALE)
    if (inverse := tensors.get(name + GLOBAL_SCALE)) is not None:
        scale = inverse.float().reciprocal()
    columns = None if listed is None else listed.long()
    if columns is not None and len(columns):
        rising = bool((columns[1:] > columns[:-1]).all())
        if not (rising and int(columns[0]) >= 0 and int(columns[-1]) < matrix.columns):
            raise ArtifactError(
                f"{name}{OUTLIERS}: not rising column numbers below {matrix.columns}. Write the "
                "artifact again."
            )
    if scale is not None and not 0 < float(scale) < math.inf:
        raise ArtifactError(f"{name}{SCALE}: {float(scale)} is no scale. Write the artifact again.")
    return Inputs(
        scheme.numbers,  # type: ignore[arg-type]  # read_inputs has looked
        float(scheme.threshold),
        columns,
        None if scale is None else float(scale),
        scheme.group_size,
    )

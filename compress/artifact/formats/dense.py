"""`dense`, an ordinary Hugging Face folder: every weight written out in the dtype of the config.

The only format with a loss: a product of code and scale has up to 16 significant bits and bfloat16
holds 8, so the weights are those of the grid rounded once more (bit-equal under ``float32``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import refusing
from compress.artifact.formats.matrix import Matrix, Scheme, Specs
from compress.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import Checkpoint

SUFFIXES: tuple[str, ...] = ()


def refusals(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
    """What this format cannot hold: how linears round their inputs."""
    return refusing.messages("dense", refusing.rounded_inputs(schemes))


def encode(
    name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight these codes stand for, lying as its family stores it."""
    weight = rounded.dequantize().to(dtype)
    yield f"{name}.weight", weight if linear is None else linear.turned(weight)


def config(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> dict[str, Any] | None:
    """No `quantization_config`: readers need not know."""
    return None


def matrices(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Matrix]:
    """No matrix of a dense folder is quantized."""
    return {}


def stored(name: str, matrix: Matrix) -> Specs:
    """A matrix is one tensor."""
    return {f"{name}.weight": (("F32", "F16", "BF16"), (matrix.rows, matrix.columns))}


def decode(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
    """Refuse: codes cannot be had back from dense weights.

    Raises:
        ArtifactError: always.
    """
    raise ArtifactError(f"{name}: a dense artifact holds weights, not codes. Read its .weight.")

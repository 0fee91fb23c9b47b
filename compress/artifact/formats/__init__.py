"""The formats an artifact can have: one module of pure functions each, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import bnb_int8, compressed_tensors, dense, gguf, gptq, packed
from compress.artifact.formats.matrix import Matrix, Scheme, Specs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import Checkpoint


class Format(Protocol):
    """What the module of a format offers. `schemes` maps each quantized module to its scheme."""

    SUFFIXES: tuple[str, ...]  # endings of tensor names that only this format gives a meaning

    def refusals(self, anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
        """What it cannot hold, one whole message a reason; asked before a run and again after."""

    def encode(
        self, name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors of one quantized matrix; `dtype` is that of the dense tensors."""

    def config(self, anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> dict[str, Any] | None:
        """The `quantization_config` of config.json."""

    def matrices(
        self, checkpoint: Checkpoint, quantization: Mapping[str, Any]
    ) -> dict[str, Matrix]:
        """The quantized matrices of a folder by module name."""

    def stored(self, name: str, matrix: Matrix) -> Specs:
        """Names, dtypes and shapes of the tensors that hold one matrix."""

    def decode(self, name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
        """One matrix back from its stored tensors."""


FORMATS: dict[str, Format] = {
    "packed": packed,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "bnb-int8": bnb_int8,
    "gguf": gguf,
    "dense": dense,
}
METHODS = {
    packed.METHOD: "packed",
    compressed_tensors.METHOD: "compressed-tensors",
    gptq.METHOD: "gptq",
    bnb_int8.METHOD: "bnb-int8",
    gguf.METHOD: "gguf",
}
BESIDE = {"gptq": gptq.BESIDE}  # a second file that holds the `quantization_config`

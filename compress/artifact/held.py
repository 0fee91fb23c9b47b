"""The weights that a format means by a student: where it rounds them once more, so does this.

Only two formats do: `dense`, which writes products out in the dtype of the config, and `gguf`,
whose asymmetric grids get a minimum in float16. Elsewhere these are the student's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from compress.anatomy import Anatomy

if TYPE_CHECKING:
    from torch import Tensor

    from compress.kernels.activations import Rounds
    from compress.kernels.grid import Rounded
    from compress.kernels.kv import KVScales


class Coded(Protocol):
    """A model of which some matrices are codes."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``."""

    @property
    def anatomy(self) -> Anatomy:
        """The picture of the dense model."""

    def rounded(self, name: str) -> Rounded | None:
        """A quantized matrix by its module name, None when it is stored dense."""

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches; None: it does not."""


class Blocks(Coded, Protocol):
    """One that is read block by block: a student, or an artifact."""

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block."""

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors of no block."""

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        """The linears of one block whose inputs are rounded."""


class Held:
    """Weights as a format holds them; can be walked."""

    def __init__(self, weights: Blocks, format: str) -> None:
        """See `weights` through `format`, a key of `FORMATS`."""
        self._weights, self._format = weights, format

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the model."""
        return self._weights.config

    @property
    def anatomy(self) -> Anatomy:
        """Of the model."""
        return self._weights.anatomy

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block."""
        return self._held(self._weights.block(index))

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors of no block."""
        return self._held(self._weights.outside())

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        """The linears of one block whose inputs are rounded."""
        return self._weights.inputs(index)

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds keys and values."""
        return self._weights.kv(index)

    def _held(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._format not in ("gguf", "dense"):
            return dict(tensors)
        return {name: self._tensor(name, tensor) for name, tensor in tensors.items()}

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        from compress.artifact.formats import gguf
        from compress.artifact.write import dtype_of

        if tensor.dim() != 2:
            return tensor
        rounded = self._weights.rounded(name.removesuffix(".weight"))
        if rounded is None:
            return tensor
        if self._format == "dense":
            return tensor.to(dtype_of(self.config))
        return tensor if rounded.sym else gguf.shifted(rounded).dequantize()

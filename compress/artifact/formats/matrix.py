"""A quantized matrix as formats see it: its scheme, its size, and the three tensors it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.artifact.formats.input_scheme import InputScheme, input_scheme
from compress.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.storage import TensorInfo

Specs = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]  # name → dtypes allowed, shape


@dataclass(frozen=True, order=True)
class Scheme:
    """How one matrix is quantized; `group_size` is in_features where a row has one scale."""

    bits: int
    group_size: int
    sym: bool
    inputs: InputScheme | None = None
    numbers: str = "int"  # what codes stand for, see `kernels.numbers`
    scale_rows: int = 1  # neighbouring rows that share a scale; 0: all


@dataclass(frozen=True)
class Matrix:
    """One quantized matrix [rows, columns] = [O, I], known without reading its codes."""

    scheme: Scheme
    rows: int
    columns: int
    outliers: int = 0  # columns of its inputs that are listed as staying as they are
    kept_words: int = 0  # of codes, where only those of a mask are stored; see `formats.sparse`

    @property
    def groups(self) -> int:
        """Scales per row."""
        return self.columns // self.scheme.group_size

    @property
    def code_words(self) -> tuple[int, int]:
        """Shape of the packed codes, packed along the columns."""
        return self.rows, -(-self.columns * self.scheme.bits // 32)

    @property
    def scale_rows(self) -> int:
        """Rows of stored scales: as many as matrix rows, unless some share theirs."""
        return -(-self.rows // (self.scheme.scale_rows or self.rows))

    @property
    def zero_words(self) -> tuple[int, int]:
        """Shape of the packed zeros, packed along the rows."""
        return -(-self.rows * self.scheme.bits // 32), self.groups


def scheme_of(rounded: Rounded) -> Scheme:
    """The scheme of a matrix on the grid."""
    r, told = rounded, input_scheme(rounded.inputs)
    return Scheme(r.bits, r.group_size, r.sym, told, r.numbers, r.scale_rows)


def disassemble(name: str, rounded: Rounded) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pack a matrix: code words [O, W] int32, scales [O, G] float32, zero words or None.

    Zeros are packed along the rows: a row has few groups, so packing along it would waste most of
    a word (`docs/formats.md` counts the bytes). A symmetric grid has none.

    Raises:
        ArtifactError: scales that two bytes cannot hold, or a symmetric grid with a zero elsewhere.
    """
    from compress.kernels.grid import storable
    from compress.kernels.pack import pack

    if not bool((storable(rounded.scale) == rounded.scale).all()):
        raise ArtifactError(
            f"{name}: some of its scales are not exact in bfloat16 and float16; stored, they would "
            "mean other weights. Choose scales with kernels.grid.storable before rounding."
        )
    codes = pack(rounded.codes, rounded.bits)
    if not rounded.sym:
        return codes, rounded.scale, pack(rounded.zero.T, rounded.bits).T.contiguous()
    if bool((rounded.zero != 1 << (rounded.bits - 1)).any()):
        raise ArtifactError(
            f"{name}: called symmetric, but some zeros are not {1 << (rounded.bits - 1)}. "
            "Round it on the symmetric grid or store it as asymmetric."
        )
    return codes, rounded.scale, None


def assemble(
    name: str, matrix: Matrix, codes: Tensor, scales: Tensor, zeros: Tensor | None
) -> Rounded:
    """Undo `disassemble`; scales may have any floating dtype.

    Raises:
        ArtifactError: a scale that no grid has: zero, infinite or no number.
    """
    from compress.kernels.pack import unpack

    scale, zero = grid(name, matrix, scales, zeros)
    return on_grid(matrix, unpack(codes, matrix.scheme.bits, matrix.columns), scale, zero)


def on_grid(matrix: Matrix, codes: Tensor, scale: Tensor, zero: Tensor) -> Rounded:
    """A matrix of codes [O, I] on the grid that its scheme names."""
    from compress.kernels.grid import Rounded

    scheme = matrix.scheme
    return Rounded(codes, scale, zero, scheme.bits, scheme.group_size, scheme.sym)


def grid(name: str, matrix: Matrix, scales: Tensor, zeros: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scales [O, G] float32 and zeros [O, G] uint8 from what is stored of them; see `assemble`."""
    import torch

    from compress.kernels.pack import unpack

    scheme, scales = matrix.scheme, scales.float()
    wrong = ~scales.isfinite() | (scales == 0)  # a negative one turns its grid round
    if bool(wrong.any()):
        row, group = wrong.nonzero()[0].tolist()
        raise ArtifactError(
            f"{name}: {int(wrong.sum()):,} of its scales are zero or not finite; that of row "
            f"{row}, group {group} is {float(scales[row, group])}. Write the artifact again."
        )
    if zeros is None:
        middle = 1 << (scheme.bits - 1)
        return scales, torch.full((matrix.rows, matrix.groups), middle, dtype=torch.uint8)
    return scales, unpack(zeros.T, scheme.bits, matrix.rows).T.contiguous()


def check_stored(specs: Specs, found: Mapping[str, TensorInfo]) -> None:
    """Check that the tensors of one matrix are there, with the right dtypes and shapes.

    Raises:
        ArtifactError: one is not; it is named.
    """
    for name, (dtypes, shape) in specs.items():
        info = found.get(name)
        if info is None:
            raise ArtifactError(f"{name}: missing from the artifact. Write it again.")
        if info.dtype not in dtypes or info.shape != shape:
            raise ArtifactError(
                f"{name}: found {info.dtype} {list(info.shape)}, the scheme in config.json needs "
                f"{' or '.join(dtypes)} {list(shape)}. Write the artifact again."
            )

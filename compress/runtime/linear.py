"""One linear, on the fastest product that its codes and its shape allow.

    weight                                        path             few rows         many rows
    ────────────────────────────────────────────────────────────────────────────────────────────────
    2 to 4 bits, groups a multiple of 32          int4pack         packed product   expand, matmul
    8 bits, one symmetric scale a row             int8pack         packed product   expand, matmul
    8 bits, groups a multiple of 32               int4pack_digits  packed product   expand, matmul
    any other codes, and all codes in float32     expanded         matmul, expanded at load
    int8 rows of a linear that rounds to int8     int8             int8 product, outliers apart
    other codes of a linear that rounds           rounding         round, matmul, expanded at load
    stored dense                                  dense            matmul

The packed products read codes instead of weights, and reading is what decoding one token costs. But
they expand the codes again every four rows, so a prompt is cheaper with the weight expanded once.
Their layout depends on the processor: it is made at load and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from compress.kernels.activations import Inputs, Rounds
from compress.kernels.grid import Rounded, Shifted
from compress.kernels.int8 import Int8Matrix, product

Path = Literal["int4pack", "int8pack", "int4pack_digits", "expanded", "int8", "rounding", "dense"]
Matrix = Tensor | Rounded

# Rows up to which a packed product beats expanding and multiplying (576 → 1536, bfloat16, AVX-512).
FEW_ROWS: dict[Path, int] = {"int4pack": 48, "int4pack_digits": 24, "int8pack": 24}
_OP_GROUPS = (256, 128, 64, 32)  # all that the int4 product knows
_EVERY = slice(None)


@dataclass(frozen=True)
class Codes:
    """A quantized matrix at rest: half a byte a code up to 4 bits, else one byte.

    codes [O, G, g/2] uint8, the low half of each byte for the first half of the group, or [O, G, g]
    uint8 or int8; scale [O, G, 1] bfloat16; zero [O, G, 1] of the codes' type.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    halved: bool

    def rows(self, which: Tensor | slice = _EVERY) -> Tensor:
        """Rows as weights, [n, I] bfloat16: the exact product of code and scale, rounded once."""
        stored, zero, scale = self.codes[which], self.zero[which], self.scale[which]
        codes = _whole(stored) if self.halved else stored.to(scale.dtype)
        return codes.sub_(zero).mul_(scale).flatten(1)

    @property
    def nbytes(self) -> int:
        """Resident bytes."""
        return self.codes.nbytes + self.scale.nbytes + self.zero.nbytes


@dataclass(frozen=True)
class Int4Product:
    """x Wᵀ with weights (code - 8) scale + offset, for codes of 0 to 15."""

    packed: Tensor  # as this processor likes it
    pairs: Tensor  # scale and offset, [G, O, 2] bfloat16
    group: int
    digits: int  # 2: codes of two digits lie side by side, and each meets the same x

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [N, I] bfloat16 to [N, O]."""
        x = torch.cat([x] * self.digits, dim=1) if self.digits > 1 else x
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.packed, self.group, self.pairs
        )
        return y

    @property
    def nbytes(self) -> int:
        """Resident bytes."""
        return self.packed.nbytes + self.pairs.nbytes


@dataclass(frozen=True)
class Int8Product:
    """x Wᵀ with weights code · scale; both are views of the codes at rest."""

    codes: Tensor  # [O, I] int8
    scale: Tensor  # [O] bfloat16
    nbytes: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [N, I] bfloat16 to [N, O]."""
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x, self.codes, self.scale)
        return y


Product = Int4Product | Int8Product


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b."""

    path: Path
    weight: Tensor | Codes | Int8Matrix
    bias: Tensor | None = None
    few: Product | None = None  # the product for at most FEW_ROWS rows
    rounds: Rounds | None = None  # how it rounds x before it multiplies

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [N, I] to [N, O]."""
        if self.rounds is not None:
            weight = self.weight if isinstance(self.weight, Tensor) else x  # of int8 not needed
            y = self.rounds.multiply(x, weight)
            return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)
        if self.few is None or x.shape[0] > FEW_ROWS[self.path]:
            return functional.linear(x, self.rows(), self.bias)
        y = self.few(x)
        return y if self.bias is None else y.add_(self.bias)

    def rows(self, which: Tensor | slice = _EVERY) -> Tensor:
        """Rows of the weight, [n, I]: what an embedding looks up, without expanding the others."""
        weight = self.weight
        return weight[which] if isinstance(weight, Tensor) else weight.rows(which)

    @property
    def nbytes(self) -> int:
        """Resident bytes; a packed product holds its codes a second time, in its own layout."""
        return self.weight.nbytes + (0 if self.few is None else self.few.nbytes)


def path(rounded: Rounded, dtype: torch.dtype) -> Path:
    """The path that a quantized matrix takes with activations of `dtype`."""
    rows, columns = rounded.codes.shape
    if rounded.inputs is not None:
        return "int8" if isinstance(product(rounded), Int8Matrix) else "rounding"
    if rounded.numbers != "int":
        return "expanded"
    if dtype != torch.bfloat16:
        return "expanded"  # in float32 the packed products are slow, and it is chosen to be exact
    # The int8 product checks no shape: with columns off a multiple of 16 it reads past the row.
    if (
        rounded.bits == 8
        and rounded.group_size == columns
        and columns % 16 == 0
        and _centred(rounded)
    ):
        return "int8pack"
    if rows % 16 == 0 and rounded.group_size % min(_OP_GROUPS) == 0:
        return "int4pack" if rounded.bits <= 4 else "int4pack_digits"
    return "expanded"


def linear(matrix: Matrix, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """Make a linear of a matrix [O, I] and its bias [O] for activations of `dtype`."""
    bias = None if bias is None else bias.to(dtype)
    if isinstance(matrix, Tensor):
        return Linear("dense", matrix.to(dtype), bias)
    chosen = path(matrix, dtype)
    if chosen == "expanded":
        return Linear(chosen, matrix.dequantize().to(dtype), bias)
    rounds = product(matrix)
    if isinstance(rounds, Int8Matrix):
        return Linear(chosen, rounds, bias, rounds=rounds)
    if chosen == "rounding":
        return Linear(chosen, matrix.dequantize().to(dtype), bias, rounds=rounds)
    if chosen == "int8pack":
        codes = _signed_bytes(matrix)
        return Linear(chosen, codes, bias, _int8_product(codes))
    pack = _int4_product if chosen == "int4pack" else _digits_product
    return Linear(chosen, _at_rest(matrix), bias, pack(matrix))


def stack(matrices: Sequence[Matrix]) -> Matrix | None:
    """All rows as one matrix, or None when the matrices are not stored alike."""
    dense = [m for m in matrices if isinstance(m, Tensor)]
    if len(dense) == len(matrices):
        return torch.cat(dense)
    rounded = [m for m in matrices if isinstance(m, Rounded)]
    kinds = {(type(m), m.bits, m.group_size, m.numbers) for m in rounded}
    if len(rounded) < len(matrices) or len(kinds) > 1 or isinstance(rounded[0], Shifted):
        return None
    if not all(_rounds_alike(rounded[0].inputs, m.inputs) for m in rounded):
        return None
    codes, scale, zero = (
        torch.cat([getattr(m, part) for m in rounded]) for part in ("codes", "scale", "zero")
    )
    sym = all(m.sym for m in rounded)
    return replace(rounded[0], codes=codes, scale=scale, zero=zero, sym=sym)


def _rounds_alike(first: Inputs | None, other: Inputs | None) -> bool:
    """Whether two linears round their inputs alike; never where columns are listed."""
    if first is None or other is None:
        return first is other
    listed = first.columns is not None or other.columns is not None
    return not listed and first == other


def _centred(rounded: Rounded) -> bool:
    return bool((rounded.zero == 1 << (rounded.bits - 1)).all())


def _at_rest(rounded: Rounded) -> Codes:
    rows, groups = rounded.scale.shape
    codes = rounded.codes.view(rows, groups, -1)
    halved = rounded.bits <= 4 and rounded.group_size % 2 == 0
    if halved:
        first, second = codes.chunk(2, dim=-1)
        codes = first | second << 4
    return Codes(codes, rounded.scale[..., None].bfloat16(), rounded.zero[..., None], halved)


def _whole(halved: Tensor) -> Tensor:
    """Codes [O, G, g] bfloat16 from half bytes [O, G, g/2]."""
    rows, groups, half = halved.shape
    codes = torch.empty(rows, groups, 2 * half, dtype=torch.bfloat16)
    codes[..., :half] = halved & 15
    codes[..., half:] = halved >> 4
    return codes


def _signed_bytes(rounded: Rounded) -> Codes:
    codes = (rounded.codes ^ 128).view(torch.int8)[:, None]  # flipping the top bit subtracts 128
    scale = rounded.scale[..., None].bfloat16()
    return Codes(codes, scale, torch.zeros_like(scale, dtype=torch.int8), halved=False)


def _int8_product(codes: Codes) -> Int8Product:
    return Int8Product(codes.codes[:, 0], codes.scale.flatten())


def _int4_product(rounded: Rounded) -> Int4Product:
    """Pack codes of 2 to 4 bits, moved so that their middle is the 8 that the product subtracts."""
    middle = 1 << (rounded.bits - 1)
    # 0 on a symmetric grid; elsewhere rounded to bfloat16, by at most 1/64 of a step.
    offset = (middle - rounded.zero.float()) * rounded.scale
    packed = _pack(rounded.codes + (8 - middle))
    return Int4Product(packed, *_pairs(rounded.scale, offset, rounded.group_size), digits=1)


def _digits_product(rounded: Rounded) -> Int4Product:
    """Pack 8-bit codes as two digits side by side.

    (q - z) s = (high - 8) 16 s + (128 - z) s + (low - 8) s + 8 s, where q = 16 high + low.
    """
    packed = _pack(torch.cat([rounded.codes >> 4, rounded.codes & 15], dim=1))
    scale = torch.cat([16 * rounded.scale, rounded.scale], dim=1)
    offset = torch.cat([(128 - rounded.zero.float()) * rounded.scale, 8 * rounded.scale], dim=1)
    return Int4Product(packed, *_pairs(scale, offset, rounded.group_size), digits=2)


def _pack(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed


def _pairs(scale: Tensor, offset: Tensor, group_size: int) -> tuple[Tensor, int]:
    """Scale and offset [O, G] as the int4 product wants them, for groups of a size it knows."""
    group = next(size for size in _OP_GROUPS if group_size % size == 0)
    pairs = torch.stack([scale, offset], dim=-1).repeat_interleave(group_size // group, dim=1)
    return pairs.transpose(0, 1).contiguous().bfloat16(), group

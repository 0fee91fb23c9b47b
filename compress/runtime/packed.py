"""A matrix in the order in which the native kernels read it: sixteen rows side by side.

    codes [O/16, words, 16] int32: of 16 rows, the next few inputs in one word each

A word of codes has four bytes, one for each of four inputs, and in a byte the codes of every fourth
input, see `place`: so inputs can be met four by four. Codes of three bits lie in four. A row count
that is no multiple of 16 is filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.kernels.grid import Rounded, Shifted

LANES = 16
_EVERY = slice(None)


@dataclass(frozen=True)
class Packed:
    """Weights (code - zero) · scale, or bfloat16 themselves."""

    codes: Tensor  # [B, words, 16] int32 for B blocks of 16 rows
    scales: Tensor  # [B, G, 16] bfloat16
    zeros: Tensor  # [B, G, 16] uint8, or [1, 1, 16] where all are alike
    bits: int  # of a stored code: 2, 4, 8, or 16 for bfloat16
    outputs: int
    inputs: int

    @property
    def nbytes(self) -> int:
        """Resident bytes."""
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.inputs // self.scales.shape[1]

    def on(self, device: str) -> Packed:
        """The same on a device."""
        parts = {name: getattr(self, name).to(device) for name in ("codes", "scales", "zeros")}
        return replace(self, **parts)

    def rows(self, which: Tensor | slice = _EVERY) -> Tensor:
        """Rows as weights, [n, I] bfloat16: the exact product of code and scale, rounded once."""
        every = torch.arange(self.outputs, device=self.codes.device)
        index = which if isinstance(which, Tensor) else every[which]
        block, lane = index // LANES, index % LANES
        words = self.codes[block, :, lane]  # [n, words]
        if self.bits == 16:
            return words.view(torch.bfloat16)
        codes = _digits(words, self.bits).view(len(index), -1, self.group_size)
        alike = len(self.zeros) == 1
        zeros = self.zeros[0, 0, :1] if alike else self.zeros[block, :, lane][..., None]
        scales = self.scales[block, :, lane][..., None]
        return ((codes - zeros).bfloat16() * scales).flatten(1)


def unit(bits: int) -> int:
    """Inputs that the kernels read together: eight, or as many as a word holds codes."""
    return max(8, 32 // bits)


def place(number: int, bits: int) -> int:
    """The bit at which the code of a word's input begins."""
    return 16 * number if bits == 16 else 8 * (number % 4) + bits * (number // 4)


def reason(rounded: Rounded) -> str | None:
    """Why codes cannot be packed; None when they can."""
    bits = _stored_bits(rounded.bits)
    if rounded.numbers != "int" or isinstance(rounded, Shifted):
        return "not integers on a plain grid"
    if rounded.group_size % unit(bits):
        return f"groups of {rounded.group_size}; a multiple of {unit(bits)} is needed"
    if not torch.equal(rounded.scale.bfloat16().float(), rounded.scale.float()):
        return "scales that are not exact in bfloat16"
    return None


def pack(matrix: Tensor | Rounded) -> Packed:
    """Pack codes of which `reason` is None, or a dense matrix, rounded to bfloat16."""
    if isinstance(matrix, Tensor):
        outputs, inputs = matrix.shape
        words = matrix.bfloat16().contiguous().view(torch.int32)
        one = torch.ones(-(-outputs // LANES), 1, LANES, dtype=torch.bfloat16)
        return Packed(_blocks(words), one, _alike(0), 16, outputs, inputs)
    bits, (outputs, inputs) = _stored_bits(matrix.bits), matrix.codes.shape
    first = matrix.zero.flatten()[0]
    alike = bool((matrix.zero == first).all())
    return Packed(
        _blocks(_words(matrix.codes, bits)),
        _blocks(matrix.scale.bfloat16()),
        _alike(int(first)) if alike else _by_group(matrix.zero),
        bits, outputs, inputs,
    )  # fmt: skip


def _stored_bits(bits: int) -> int:
    return 4 if bits == 3 else bits


def _alike(zero: int) -> Tensor:
    return torch.full((1, 1, LANES), zero, dtype=torch.uint8)


def _by_group(zero: Tensor) -> Tensor:
    """Zeros [O, G] in blocks, two at least: one alone says that all are alike."""
    blocks = _blocks(zero.byte())
    return blocks if len(blocks) > 1 else blocks.repeat(2, 1, 1)


def _blocks(rows: Tensor) -> Tensor:
    """[O, n] as [B, n, 16], filled up with zeros."""
    filled = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % LANES))
    return filled.view(-1, LANES, rows.shape[1]).transpose(1, 2).contiguous()


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes [O, I] uint8 as words [O, I · bits / 32] int32, see `place`."""
    digits = codes.unflatten(1, (-1, 8 // bits, 4))
    filled: Tensor = digits[:, :, 0].contiguous()
    for number in range(1, 8 // bits):
        filled |= digits[:, :, number] << bits * number
    return filled.view(torch.int32).squeeze(-1)


def _digits(words: Tensor, bits: int) -> Tensor:
    """The inverse of `_words`, int32."""
    filled = words.contiguous()[..., None, None].view(torch.uint8)
    moved = filled >> torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device)[:, None]
    return (moved & ((1 << bits) - 1)).flatten(1).int()

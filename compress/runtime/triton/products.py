"""A packed matrix times a few tokens: codes are read once, weights exist in registers only.

A program multiplies one block of sixteen rows, whose words lie side by side, by a part of the
inputs; parts are summed behind it, in order, so that the same call gives the same bits. Off a GPU
Triton's interpreter runs it, whose products know no bfloat16: there they are of float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.runtime.packed import LANES, Packed

MOST_ROWS = 64  # of x; for more, weights are expanded and multiplied
_LEAST = 16  # rows that a product of tensor cores wants
_WORDS = 32  # read together
_PART = 256  # words of a row in one program


@triton.jit
def _multiply(
    x, codes, scales, zeros, y,
    rows, inputs, words, groups, group_words, outputs,
    alike: tl.constexpr, bits: tl.constexpr, part: tl.constexpr, at_once: tl.constexpr,
    lanes: tl.constexpr, most_rows: tl.constexpr, floats: tl.constexpr,
):  # fmt: skip
    """Partial sums [parts, rows, outputs] float32 of x [rows, inputs] times packed weights."""
    block, number = tl.program_id(0), tl.program_id(1)
    row, lane = tl.arange(0, most_rows), tl.arange(0, lanes)
    total = tl.zeros((most_rows, lanes), tl.float32)
    each: tl.constexpr = 32 // bits
    for start in range(0, part, at_once):
        word = number * part + start + tl.arange(0, at_once)
        held = word < words
        where = (block * words + word)[:, None] * lanes + lane
        packed = tl.load(codes + where, mask=held[:, None], other=0)
        group = (block * groups + word // group_words)[:, None] * lanes + lane
        scale = tl.load(scales + group, mask=held[:, None], other=0.0)
        at = lane[None, :] if alike else group
        zero = tl.load(zeros + at, mask=held[:, None], other=0).to(tl.int32)
        for digit in tl.static_range(each):
            place = 8 * (digit % 4) + bits * (digit // 4)  # `packed.place`
            code = (packed >> place) & ((1 << bits) - 1)
            weight = (code - zero).to(tl.float32) * scale.to(tl.float32)
            taken = tl.load(
                x + row[:, None] * inputs + (word * each + digit)[None, :],
                mask=(row < rows)[:, None] & held[None, :], other=0.0,
            )  # fmt: skip
            if floats:
                total += tl.dot(taken.to(tl.float32), weight)
            else:
                total += tl.dot(taken, weight.to(tl.bfloat16))
    output = block * lanes + lane
    tl.store(
        y + (number * rows + row[:, None]) * outputs + output[None, :],
        total, mask=(row < rows)[:, None] & (output < outputs)[None, :],
    )  # fmt: skip


def multiply(weight: Packed, x: Tensor) -> Tensor:
    """X Wᵀ in the dtype of x.

    Args:
        weight: codes of 2, 4 or 8 bits (those of 3 lie in 4), on a device.
        x: [N, I] bfloat16 of at most `MOST_ROWS` rows, on the same.

    Returns:
        [N, O] bfloat16; weights are rounded to bfloat16 as `Packed.rows` rounds them, sums are
        float32.
    """
    blocks, words, _ = weight.codes.shape
    rows = max(_LEAST, triton.next_power_of_2(len(x)))
    parts = triton.cdiv(words, _PART)
    sums = torch.empty(parts, len(x), weight.outputs, dtype=torch.float32, device=x.device)
    _multiply[(blocks, parts)](
        x.contiguous(), weight.codes, weight.scales, weight.zeros, sums,
        len(x), weight.inputs, words, weight.scales.shape[1],
        weight.group_size * weight.bits // 32, weight.outputs,
        alike=len(weight.zeros) == 1, bits=weight.bits, part=_PART, at_once=_WORDS, lanes=LANES,
        most_rows=rows, floats=not x.is_cuda, num_warps=2 if rows == _LEAST else 4,
    )  # fmt: skip
    return (sums[0] if parts == 1 else sums.sum(0)).to(x.dtype)

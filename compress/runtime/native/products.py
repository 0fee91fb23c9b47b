"""Products of a packed matrix with a few tokens, sixteen outputs at a time."""

from __future__ import annotations

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from compress.runtime.native.lanes import dot, floats, kernels, numbers
from compress.runtime.native.layout import MATRIX
from compress.runtime.native.vectors import group_sums
from compress.runtime.packed import LANES, Packed, unit

SPARE = 8  # rows behind the last token's that a pass may read and write


def record(packed: Packed, bias: int = 0) -> tuple[int, ...]:
    """A matrix as `layout.MATRIX` describes it; `bias` is an address, 0 for none."""
    alike = len(packed.zeros) == 1
    return (
        kernels(packed.bits).ctypes.data,
        packed.codes.data_ptr(), packed.scales.data_ptr(), packed.zeros.data_ptr(),
        packed.codes[0].nbytes, packed.scales[0].nbytes, 0 if alike else packed.zeros[0].nbytes,
        0 if alike else LANES, len(packed.codes), packed.scales.shape[1],
        packed.group_size // unit(packed.bits), packed.inputs, bias,
    )  # fmt: skip


def multiply(packed: Packed, x: Tensor) -> Tensor:
    """Map x [N, I] to [N, O] in its dtype, on this thread: for artifacts that have no `Decoder`."""
    rows, blocks = len(x), len(packed.codes)
    inputs = torch.empty(rows + SPARE, packed.inputs)
    inputs[:rows] = x
    scratch = torch.empty((rows + SPARE) * (packed.scales.shape[1] + LANES))
    made = torch.empty(rows, blocks * LANES)
    matrix = np.array([record(packed)], dtype=MATRIX)
    _multiply(matrix, inputs.numpy(), scratch.numpy(), made.numpy())
    return made[:, : packed.outputs].to(x.dtype)


@njit(nogil=True, cache=True)
def _multiply(matrices, x, scratch, made):
    matrix, rows, width = matrices[0], len(made), made.shape[1]
    sums = scratch.ctypes.data
    out = summed(matrix, x.ctypes.data, matrix.inputs, rows, sums)
    for at in range(matrix.blocks):
        sixteen(matrix, at, x.ctypes.data, matrix.inputs, rows, sums, out)
        put(out, rows, made.ctypes.data, width, at)


@njit(inline="always")
def kernel_for(table, rows):
    """The address of the kernel for so many rows."""
    return carray(numbers(table), (9,))[rows]


@njit(inline="always")
def passes(left):
    """How many of the rows that are left one pass over a matrix serves; one more than three."""
    return np.int64(8 if left >= 7 else 4 if left >= 3 else left)


@njit(nogil=True, fastmath=True)
def summed(matrix, source, step, rows, sums):
    """Add up inputs by groups, [N, G] at `sums`; returns the address behind."""
    groups = matrix.groups
    for row in range(rows):
        x = carray(floats(source + 4 * row * step), (matrix.inputs,))
        out = carray(floats(sums + 4 * row * groups), (groups,))
        group_sums(x, matrix.inputs // groups, out)
    return sums + 4 * (rows + SPARE) * groups


@njit(nogil=True)
def sixteen(matrix, at, source, step, rows, sums, out):
    """Sixteen outputs of all rows, into [N, 16] at `out`."""
    row, groups = 0, matrix.groups
    while row < rows:
        many = passes(rows - row)
        dot(
            kernel_for(matrix.kernels, many),
            matrix.codes + at * matrix.code_bytes, matrix.scales + at * matrix.scale_bytes,
            matrix.zeros + at * matrix.zero_bytes, matrix.zero_step,
            source + 4 * row * step, step, sums + 4 * row * groups, groups, out + 4 * row * LANES,
            groups, matrix.units,
        )  # fmt: skip
        row += many
    if matrix.bias != 0:
        bias = lanes_of(matrix.bias, 0, 0, at)
        for row in range(rows):
            made = lanes_of(out, row, LANES, 0)
            for lane in range(LANES):
                made[lane] += bias[lane]


@njit(inline="always")
def lanes_of(address, row, width, at):
    """Sixteen columns of a row of [N, width] float32."""
    return carray(floats(address + 4 * (row * width + at * LANES)), (LANES,))


@njit(nogil=True, fastmath=True)
def put(out, rows, target, width, at):
    """Copy sixteen outputs of all rows to their columns of [N, width] at `target`."""
    for row in range(rows):
        made, kept = lanes_of(out, row, LANES, 0), lanes_of(target, row, width, at)
        for lane in range(LANES):
            kept[lane] = made[lane]

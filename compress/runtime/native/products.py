"""Products of a packed matrix with a few tokens, sixteen outputs at a time."""

from __future__ import annotations

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from compress.runtime.native.lanes import PAIRS, dot, floats, halves, kernels, numbers
from compress.runtime.native.layout import MATRIX
from compress.runtime.native.vectors import group_halves, group_sums
from compress.runtime.packed import LANES, Packed, unit

SPARE = 4  # rows behind the last token's that a pass may read and write


def record(packed: Packed, bias: int = 0, *, pairs: bool = PAIRS) -> tuple[int, ...]:
    """A matrix as `layout.MATRIX` describes it; `bias` is an address, 0 for none."""
    alike = len(packed.zeros) == 1
    return (
        kernels(packed.bits, pairs=pairs).ctypes.data,
        packed.codes.data_ptr(), packed.scales.data_ptr(), packed.zeros.data_ptr(),
        packed.codes[0].nbytes, packed.scales[0].nbytes, 0 if alike else packed.zeros[0].nbytes,
        0 if alike else LANES, len(packed.codes), packed.scales.shape[1],
        packed.group_size // unit(packed.bits), packed.inputs, paired(packed.bits, pairs=pairs),
        bias,
    )  # fmt: skip


def paired(bits: int, *, pairs: bool = PAIRS) -> int:
    """How kernels for so many bits read their inputs, as `layout.MATRIX` says it."""
    return (2 if bits == 8 else 1) if pairs else 0


def multiply(packed: Packed, x: Tensor, *, pairs: bool = PAIRS) -> Tensor:
    """Map x [N, I] to [N, O] in its dtype, on this thread: for artifacts that have no `Decoder`."""
    rows = len(x)
    matrix = np.array([record(packed, pairs=pairs)], dtype=MATRIX)
    scratch = torch.empty(scratch_floats(rows, packed.inputs, packed.scales.shape[1]))
    made = torch.empty(rows, len(packed.codes) * LANES)
    _multiply(matrix, x.float().contiguous().numpy(), scratch.numpy(), made.numpy())
    return made[:, : packed.outputs].to(x.dtype)


def scratch_floats(rows: int, inputs: int, groups: int) -> int:
    """Floats that inputs of a matrix, made ready, and sixteen of its outputs take at most."""
    return (rows + SPARE) * (inputs + groups + LANES)


@njit(nogil=True, cache=True)
def _multiply(matrices, x, scratch, made):
    matrix, rows, width = matrices[0], len(made), made.shape[1]
    ready = prepared(matrix, x.ctypes.data, matrix.inputs, rows, scratch.ctypes.data)
    for at in range(matrix.blocks):
        sixteen(matrix, at, ready, rows, ready[3])
        put(ready[3], rows, made.ctypes.data, width, at)


@njit(inline="always")
def kernel_for(table, rows):
    """The address of the kernel for so many rows."""
    return carray(numbers(table), (5,))[rows]


@njit(inline="always")
def passes(left):
    """How many of the rows that are left one pass over a matrix serves; one more than three."""
    return np.int64(4 if left >= 3 else left)


@njit(nogil=True, fastmath=True)
def prepared(matrix, source, step, rows, scratch):
    """Inputs [N, step] float32 at `source`, of which a matrix reads the first, made ready.

    Returns:
        Where kernels find them, the bytes of a token, where their sums are, and the scratch behind.
    """
    inputs, groups = matrix.inputs, matrix.groups
    x, each, sums = source, 4 * step, scratch
    if matrix.paired > 0:
        x, each = scratch, 2 * inputs * matrix.paired
        sums = scratch + each * (rows + SPARE)
    for row in range(rows):
        given = carray(floats(source + 4 * row * step), (inputs,))
        out = carray(floats(sums + 4 * row * groups), (groups,))
        if matrix.paired > 0:
            made = carray(halves(x + row * each), (inputs,))
            more = carray(halves(x + row * each + 2 * inputs), (inputs * (matrix.paired - 1),))
            group_halves(given, inputs // groups, out, made, more)
        else:
            group_sums(given, inputs // groups, out)
    return x, each, sums, sums + 4 * (rows + SPARE) * groups


@njit(inline="always")
def ready_for(matrix, other, ready, source, step, rows):
    """Inputs made ready for a matrix: those for another one, where it reads them alike."""
    if matrix.groups == other.groups and matrix.paired == other.paired:
        return ready
    return prepared(matrix, source, step, rows, ready[3])


@njit(nogil=True)
def sixteen(matrix, at, ready, rows, out):
    """Sixteen outputs of all rows, into [N, 16] at `out`."""
    x, each, sums, _ = ready
    row, groups = 0, matrix.groups
    while row < rows:
        many = passes(rows - row)
        dot(
            kernel_for(matrix.kernels, many),
            matrix.codes + at * matrix.code_bytes, matrix.scales + at * matrix.scale_bytes,
            matrix.zeros + at * matrix.zero_bytes, matrix.zero_step,
            x + row * each, each, sums + 4 * row * groups, groups, out + 4 * row * LANES,
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

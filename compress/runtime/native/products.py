"""Products of a packed matrix with a few tokens, sixteen outputs at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor
from torch.nn.functional import pad

from compress.kernels.activations import Inputs
from compress.runtime.native.lanes import PAIRS, dot, floats, halves, kernels, numbers, octets
from compress.runtime.native.layout import MATRIX
from compress.runtime.native.vectors import group_halves, group_sums, round_steps
from compress.runtime.packed import LANES, Packed, unit

SPARE = 4  # rows behind the last token's that a pass may read and write
_NEAR = (
    32 * 1024
)  # bytes of inputs that are met by one block of rows after another, in a near cache


def record(
    packed: Packed, rounds: Inputs | None, keep: Callable[[Any], int], *, pairs: bool = PAIRS,
    bias: Tensor | None = None,
) -> tuple[float, ...]:  # fmt: skip
    """A matrix as `layout.MATRIX` describes it.

    Args:
        packed: the matrix.
        rounds: how its inputs become int8; None: they do not.
        keep: holds on to an array and tells its address.
        pairs: whether kernels read pairs of bfloat16.
        bias: [O].
    """
    columns = None if rounds is None or rounds.columns is None else _mask(rounds, packed.inputs)
    filled = None if bias is None else pad(bias.float(), (0, -len(bias) % LANES)).numpy().copy()
    alike = len(packed.zeros) == 1
    return (
        kernels(packed.bits, pairs=pairs).ctypes.data,
        packed.codes.data_ptr(), packed.scales.data_ptr(), packed.zeros.data_ptr(),
        packed.codes[0].nbytes, packed.scales[0].nbytes, 0 if alike else packed.zeros[0].nbytes,
        0 if alike else LANES, len(packed.codes), packed.scales.shape[1],
        packed.group_size // unit(packed.bits), packed.inputs, paired(packed.bits, pairs=pairs),
        0 if filled is None else keep(filled), int(rounds is not None),
        0 if columns is None else keep(columns),
        0.0 if rounds is None else rounds.threshold, (rounds and rounds.scale) or 0.0,
    )  # fmt: skip


def _mask(rounds: Inputs, inputs: int) -> Any:
    found = np.zeros(inputs, np.uint8)
    found[rounds.columns] = 1
    return found


def paired(bits: int, *, pairs: bool = PAIRS) -> int:
    """How kernels for so many bits read their inputs, as `layout.MATRIX` says it."""
    return (2 if bits == 8 else 1) if pairs else 0


def multiply(packed: Packed, x: Tensor, *, pairs: bool = PAIRS) -> Tensor:
    """Map x [N, I] to [N, O] in its dtype, on this thread: for artifacts that have no `Decoder`."""
    rows = len(x)
    matrix = np.array([record(packed, None, lambda array: 0, pairs=pairs)], dtype=MATRIX)
    scratch = torch.empty(scratch_floats(rows, packed.inputs, packed.scales.shape[1]))
    made = torch.empty(rows, len(packed.codes) * LANES)
    _multiply(matrix, x.float().contiguous().numpy(), scratch.numpy(), made.numpy())
    return made[:, : packed.outputs].to(x.dtype)


def scratch_floats(rows: int, inputs: int, groups: int) -> int:
    """Floats that inputs of a matrix, made ready, and sixteen of its outputs take at most."""
    return (rows + SPARE) * (2 * inputs + groups + LANES + 1) + inputs


@njit(nogil=True, cache=True)
def _multiply(matrices, x, scratch, made):
    matrix, rows, width = matrices[0], len(made), made.shape[1]
    ready = prepared(matrix, x.ctypes.data, matrix.inputs, rows, scratch.ctypes.data)
    out = ready[4]
    for first in range(0, rows, tile(ready)):
        many = min(tile(ready), rows - first)
        for at in range(matrix.blocks):
            sixteen(matrix, at, ready, first, many, out)
            put(out, many, made.ctypes.data + 4 * first * width, width, at)


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
        Where kernels find them, the bytes of a token, where their sums are, where by token what is
        made is to be multiplied by (0: by nothing), and the scratch behind.
    """
    inputs, groups, back = matrix.inputs, matrix.groups, np.int64(0)
    if matrix.rounds != 0:
        back = scratch
        source, step, scratch = _rounded(matrix, source, step, rows, scratch)
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
    return x, each, sums, back, sums + 4 * (rows + SPARE) * groups


@njit(nogil=True)
def _rounded(matrix, source, step, rows, scratch):
    """Inputs in int8 steps [N, I], behind what a step is worth [N].

    Returns:
        Where the steps are, the floats of a token, and the scratch behind.
    """
    inputs = matrix.inputs
    scales = carray(floats(scratch), (rows,))
    kept = carray(octets(scratch + 4 * (rows + SPARE)), (inputs,))
    made = scratch + 4 * (rows + SPARE) + 4 * inputs
    kept[:] = 0
    if matrix.columns != 0:
        kept[:] = carray(octets(matrix.columns), (inputs,))
    if matrix.threshold > 0:
        for row in range(rows):
            x = carray(floats(source + 4 * row * step), (inputs,))
            for i in range(inputs):
                kept[i] |= np.uint8(abs(x[i]) >= matrix.threshold)
    for row in range(rows):
        x = carray(floats(source + 4 * row * step), (inputs,))
        out = carray(floats(made + 4 * row * inputs), (inputs,))
        scales[row] = round_steps(x, matrix.input_scale, kept, out)
    return made, inputs, made + 4 * (rows + SPARE) * inputs


@njit(inline="always")
def ready_for(matrix, other, ready, source, step, rows):
    """Inputs made ready for a matrix: those for another one, where it reads them alike."""
    alike = matrix.groups == other.groups and matrix.paired == other.paired
    if alike and matrix.rounds == 0 and other.rounds == 0:
        return ready
    return prepared(matrix, source, step, rows, ready[4])


@njit(inline="always")
def tile(ready):
    """How many rows are multiplied by all that a thread has taken before the next ones are."""
    return max(4, _NEAR // ready[1] // 4 * 4)


@njit(nogil=True)
def sixteen(matrix, at, ready, first, rows, out):
    """Sixteen outputs of some rows, from `first` on, into [rows, 16] at `out`."""
    x, each, sums, back, _ = ready
    row, groups = 0, matrix.groups
    x, sums = x + first * each, sums + 4 * first * groups
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
    if back != 0:
        scales = carray(floats(back + 4 * first), (rows,))
        for row in range(rows):
            made = lanes_of(out, row, LANES, 0)
            for lane in range(LANES):
                made[lane] *= scales[row]
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

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
from compress.runtime.native.lanes import (
    DIGITS,
    FLOATS,
    MOST_ROWS,
    PAIRS,
    dot,
    floats,
    halves,
    kernels,
    numbers,
    octets,
    reading,
    round_part,
)
from compress.runtime.native.layout import MATRIX
from compress.runtime.native.vectors import group_sums, round_halves, round_steps
from compress.runtime.packed import LANES, Packed, unit

SPARE = 4  # rows behind the last token's that a pass may read and write
_PART = 128  # inputs at most whose products are added up as whole numbers
_NEAR = (
    32 * 1024
)  # bytes of inputs that are met by one block of rows after another, in a near cache


def record(
    packed: Packed, rounds: Inputs | None, keep: Callable[[Any], int], *, plain: bool = False,
    bias: Tensor | None = None,
) -> tuple[float, ...]:  # fmt: skip
    """A matrix as `layout.MATRIX` describes it.

    Args:
        packed: the matrix.
        rounds: how its inputs become int8; None: they do not.
        keep: holds on to an array and tells its address.
        plain: multiplied as any processor can.
        bias: [O].
    """
    columns = None if rounds is None or rounds.columns is None else _mask(rounds, packed.inputs)
    filled = None if bias is None else pad(bias.float(), (0, -len(bias) % LANES)).numpy().copy()
    alike, reads = len(packed.zeros) == 1, reading(packed.bits, plain=plain)
    units = packed.group_size // unit(packed.bits)
    share = _share(units, _PART // unit(packed.bits)) if reads == DIGITS else 1
    return (
        kernels(packed.bits, reads).ctypes.data,
        packed.codes.data_ptr(), packed.scales.data_ptr(), packed.zeros.data_ptr(),
        packed.codes[0].nbytes, packed.scales[0].nbytes, 0 if alike else packed.zeros[0].nbytes,
        0 if alike else LANES, len(packed.codes), packed.scales.shape[1],
        share, units // share, packed.inputs, reads,
        0 if filled is None else keep(filled), int(rounds is not None),
        0 if columns is None else keep(columns),
        0.0 if rounds is None else rounds.threshold, (rounds and rounds.scale) or 0.0,
    )  # fmt: skip


def _mask(rounds: Inputs, inputs: int) -> Any:
    found = np.zeros(inputs, np.uint8)
    found[rounds.columns] = 1
    return found


def _share(units: int, most: int) -> int:
    """In how many parts a group of so many units is added up."""
    return next(n for n in range(1, units + 1) if units % n == 0 and units // n <= most)


def multiply(packed: Packed, x: Tensor, *, plain: bool = False) -> Tensor:
    """Map x [N, I] to [N, O] in its dtype, on this thread: for artifacts that have no `Decoder`."""
    rows = len(x)
    matrix = np.array([record(packed, None, lambda array: 0, plain=plain)], dtype=MATRIX)
    groups = int(matrix["groups"][0] * matrix["share"][0])
    scratch = torch.empty(scratch_floats(rows, packed.inputs, groups))
    made = torch.empty(rows, len(packed.codes) * LANES)
    _multiply(matrix, x.float().contiguous().numpy(), scratch.numpy(), made.numpy())
    return made[:, : packed.outputs].to(x.dtype)


def scratch_floats(rows: int, inputs: int, groups: int) -> int:
    """Floats that inputs of a matrix, made ready, and sixteen of its outputs take at most."""
    return (rows + SPARE) * (2 * inputs + 2 * groups + LANES + 1) + inputs


@njit(nogil=True, cache=True)
def _multiply(matrices, x, scratch, made):
    matrix, rows, width = matrices[0], len(made), made.shape[1]
    inputs = prepared(matrix, x.ctypes.data, matrix.inputs, rows, scratch.ctypes.data)
    out = inputs[4]
    for first in range(0, rows, tile(inputs)):
        many = min(tile(inputs), rows - first)
        for at in range(matrix.blocks):
            sixteen(matrix, at, inputs, first, many, out)
            put(out, many, made.ctypes.data + 4 * first * width, width, at)


@njit(inline="always")
def kernel_for(table, rows):
    """The address of the kernel for so many rows."""
    return carray(numbers(table), (MOST_ROWS + 1,))[rows]


@njit(inline="always")
def passes(table, left):
    """How many of the rows that are left one pass over a matrix serves; one more than 3 or 7."""
    if left >= 7 and kernel_for(table, 0) == 8:
        return np.int64(8)
    return np.int64(4 if left >= 3 else left)


@njit(inline="always")
def row_bytes(reads, inputs):
    """Bytes of a token's inputs as kernels read them."""
    return np.int64(4 if reads == FLOATS else 2) * inputs


@njit(nogil=True)
def ready(reads, table, source, inputs, parts, made, row, rows):
    """Put float32 [inputs] at `source` where kernels find it as one of some rows.

    Args:
        reads: how they read inputs.
        table: of kernels.
        source: an address.
        inputs: how many.
        parts: of them that are added up for themselves.
        made: address of rows + `SPARE` rows as kernels read them, behind which lie sums of as many.
        row: which one this is.
        rows: of all.
    """
    each = row_bytes(reads, inputs)
    sums = made + each * (rows + SPARE) + 8 * row * parts
    x, place = carray(floats(source), (inputs,)), made + each * row
    if reads == FLOATS:
        carray(floats(place), (inputs,))[:] = x
        group_sums(x, inputs // parts, carray(floats(sums), (parts,)))
    elif reads == PAIRS:  # of numbers that stand for themselves: nobody asks for sums
        round_halves(x, carray(halves(place), (inputs,)))
    else:
        first = row // MOST_ROWS * MOST_ROWS
        many = passes(table, rows - first)
        while row >= first + many:
            first += many
            many = passes(table, rows - first)
        place = made + each * first + 8 * (row - first)
        eights, back = inputs // parts // 8, sums + 4 * parts
        for part in range(parts):
            round_part(
                source + 32 * eights * part, eights, place + 16 * many * eights * part, 8 * many,
                sums + 4 * part, back + 4 * part,
            )  # fmt: skip


@njit(nogil=True, fastmath=True)
def prepared(matrix, source, step, rows, scratch):
    """Inputs [N, step] float32 at `source`, of which a matrix reads the first, made ready.

    Returns:
        Where kernels find them, the bytes of a token, where their sums are, where by token what is
        made is to be multiplied by (0: by nothing), and the scratch behind.
    """
    inputs, parts, back = matrix.inputs, matrix.groups * matrix.share, np.int64(0)
    if matrix.rounds != 0:
        back = scratch
        source, step, scratch = _rounded(matrix, source, step, rows, scratch)
    each = row_bytes(matrix.reads, inputs)
    for row in range(rows):
        given = source + 4 * row * step
        ready(matrix.reads, matrix.kernels, given, inputs, parts, scratch, row, rows)
    sums = scratch + each * (rows + SPARE)
    return scratch, each, sums, back, sums + 8 * (rows + SPARE) * parts


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
def ready_for(matrix, other, inputs, source, step, rows):
    """Inputs made ready for a matrix: those for another one, where it reads them alike."""
    alike = matrix.groups * matrix.share == other.groups * other.share
    if alike and matrix.reads == other.reads and matrix.rounds == 0 and other.rounds == 0:
        return inputs
    return prepared(matrix, source, step, rows, inputs[4])


@njit(inline="always")
def tile(inputs):
    """How many rows are multiplied by all that a thread has taken before the next ones are."""
    return max(MOST_ROWS, _NEAR // inputs[1] // MOST_ROWS * MOST_ROWS)


@njit(nogil=True)
def sixteen(matrix, at, inputs, first, rows, out):
    """Sixteen outputs of some rows, from `first` on, into [rows, 16] at `out`."""
    x, each, sums, back, _ = inputs
    row, parts = 0, matrix.groups * matrix.share
    x, sums = x + first * each, sums + 8 * first * parts
    while row < rows:
        many = passes(matrix.kernels, rows - row)
        dot(
            kernel_for(matrix.kernels, many),
            matrix.codes + at * matrix.code_bytes, matrix.scales + at * matrix.scale_bytes,
            matrix.zeros + at * matrix.zero_bytes, matrix.zero_step,
            x + row * each, each, sums + 8 * row * parts, 2 * parts, out + 4 * row * LANES,
            matrix.groups, matrix.share, matrix.units,
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

"""Loops over vectors of float32 that LLVM turns into vector code: norm, rotation, rounding."""

from __future__ import annotations

import numpy as np
from numba import njit

_TINY = np.float32(2.0**-100)  # a row of zeros has a scale too
_ONE = np.float32(1.0)


@njit(fastmath=True, nogil=True)
def normalize(x, gain, floor, out):
    """Root-mean-square norm of x [D], as in `compress.runtime.model.Norm`."""
    squares = np.float32(0.0)
    for i in range(len(gain)):
        squares += x[i] * x[i]
    back = _ONE / np.sqrt(squares + floor * floor)
    for i in range(len(gain)):
        out[i] = x[i] * back * gain[i]


@njit(fastmath=True, nogil=True)
def rotate(head, cosine, sine):
    """Turn a head [D] by its position's angles [D/2], in place: its halves pair up."""
    half = len(cosine)
    for i in range(half):
        first, second = head[i], head[half + i]
        head[i] = first * cosine[i] - second * sine[i]
        head[half + i] = second * cosine[i] + first * sine[i]


@njit(inline="always")
def to_half(x):
    """The bits of the bfloat16 nearest to a finite x, halves to even."""
    bits = np.float32(x).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16)


@njit(inline="always")
def from_half(bits):
    """The float32 that bfloat16 bits stand for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(fastmath=True, nogil=True)
def group_sums(x, size, out):
    """Add up x [G · size] by groups, into out [G]."""
    for group in range(len(out)):
        total = np.float32(0.0)
        for i in range(group * size, (group + 1) * size):
            total += x[i]
        out[group] = total


@njit(fastmath=True, nogil=True)
def round_halves(x, out):
    """Round x [N] to bfloat16."""
    for i in range(len(out)):
        out[i] = to_half(x[i])


@njit(nogil=True)
def round_steps(x, fixed, kept, out):
    """Write x [I] in steps of its scale, int8 but where it is `kept`; returns the scale.

    As `kernels.activations` rounds: halves go to even, and nothing here may be reordered.
    """
    scale = np.float32(fixed)
    if scale == 0:
        largest = _TINY
        for i in range(len(x)):
            if kept[i] == 0:
                largest = max(largest, abs(x[i]))
        scale = np.float32(largest / np.float32(127.0))
    for i in range(len(x)):
        exact = np.float32(x[i] / scale)
        rounded = max(min(np.rint(exact), np.float32(127.0)), np.float32(-128.0))
        out[i] = exact if kept[i] != 0 else rounded
    return scale

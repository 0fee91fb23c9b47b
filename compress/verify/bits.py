"""Words of codes, read bit by bit as docs/formats.md counts them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CODES_AT_ONCE = 1 << 22  # codes unpacked together: their bits take a byte each


def unpack(words: NDArray[np.int32], bits: int, count: int) -> NDArray[np.uint8]:
    """Codes [O, count] of packed rows [O, W]: code i is bits ``[i * bits, (i + 1) * bits)``."""
    rows = len(words)
    at_once = max(1, _CODES_AT_ONCE // count)
    codes = np.empty((rows, count), np.uint8)
    for first in range(0, rows, at_once):
        flat = _bits(words[first : first + at_once])[:, : count * bits]
        fields = flat.reshape(len(flat), count, bits)
        codes[first : first + at_once] = np.packbits(fields, axis=-1, bitorder="little")[..., 0]
    return codes


def spare_bits(words: NDArray[np.int32], bits: int, count: int) -> bool:
    """Whether any bit is set behind the last of `count` codes in a row; none should be."""
    used = count * bits
    last = _bits(np.ascontiguousarray(words[:, used // 32 :]))
    return bool(last[:, used % 32 :].any())


def _bits(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The bits of rows of words, lowest first, each as a byte."""
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")

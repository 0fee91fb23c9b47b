"""Packed weights as bfloat16, for products with many tokens."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from compress.runtime.native.vectors import from_half, to_half
from compress.runtime.packed import LANES, Packed


def transposed(packed: Packed) -> Tensor:
    """The weight as [I, O] bfloat16: the exact product of code and scale, rounded once."""
    outputs = len(packed.codes) * LANES
    made = torch.empty(packed.inputs, outputs, dtype=torch.bfloat16)
    words, scales = (one.numpy() for one in (packed.codes, packed.scales.view(torch.int16)))
    out = made.view(torch.int16).numpy().view(np.uint16)
    if packed.bits == 16:
        _copy(words.view(np.uint32), out)
    else:
        zeros = packed.zeros.numpy()
        _expand(words.view(np.uint32), scales.view(np.uint16), zeros, packed.bits, out)
    return made[:, : packed.outputs]


def signed_codes(packed: Packed) -> Tensor:
    """Codes of eight bits as [I, O] int8, less 128."""
    made = torch.empty(packed.inputs, len(packed.codes) * LANES, dtype=torch.int8)
    _spread(packed.codes.numpy().view(np.uint32), made.numpy())
    return made[:, : packed.outputs]


@njit(nogil=True, cache=True)
def _spread(words, out):
    """Write bytes of words [B, I / 4, 16], less 128, to [I, 16 B]."""
    for block in range(words.shape[0]):
        for word in range(words.shape[1]):
            for digit in range(4):
                shift = np.uint32(8 * digit)  # `packed.place`
                row = out[word * 4 + digit, block * LANES : (block + 1) * LANES]
                for lane in range(LANES):
                    code = np.int32((words[block, word, lane] >> shift) & np.uint32(0xFF))
                    row[lane] = np.int8(code - 128)


@njit(nogil=True, cache=True)
def _copy(words, out):
    """Write bfloat16 of words [B, I / 2, 16] to [I, 16 B]."""
    for block in range(words.shape[0]):
        for word in range(words.shape[1]):
            low = out[2 * word, block * LANES : (block + 1) * LANES]
            high = out[2 * word + 1, block * LANES : (block + 1) * LANES]
            for lane in range(LANES):
                low[lane] = np.uint16(words[block, word, lane] & np.uint32(0xFFFF))
                high[lane] = np.uint16(words[block, word, lane] >> np.uint32(16))


@njit(nogil=True, cache=True)
def _expand(words, scales, zeros, bits, out):
    """Write codes [B, W, 16] as weights to [I, 16 B]; zeros [B, G, 16], or [1, 1, 16] for all."""
    each, mask = 32 // bits, np.uint32((1 << bits) - 1)
    alike, many = zeros.shape[0] == 1, words.shape[1] // scales.shape[1]
    for block in range(words.shape[0]):
        for word in range(words.shape[1]):
            group = word // many
            scale, stored = scales[block, group], words[block, word]
            zero = zeros[0, 0] if alike else zeros[block, group]
            for digit in range(each):
                shift = np.uint32(8 * (digit % 4) + bits * (digit // 4))  # `packed.place`
                row = out[word * each + digit, block * LANES : (block + 1) * LANES]
                for lane in range(LANES):
                    code = np.int32((stored[lane] >> shift) & mask)
                    row[lane] = to_half(np.float32(code - zero[lane]) * from_half(scale[lane]))

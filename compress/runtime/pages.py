"""Keys and values of all tokens that have been read, in pages of one size.

They are held in the dtype of the arithmetic or as codes of one byte: half of bfloat16. Scales that
all tokens share need not be multiplied into what is read: codes are exact in every dtype, so they
are handed out as they are, and `steps` says by how much queries, and what attention makes of
values, are to be scaled. Steps that belong to a token are multiplied in.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.kernels.kv import DTYPES, KVScales, Numbers, decode, encode, steps
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.packed import LANES

_MIDDLE = 128  # what is added to an int8 code to make it a byte without a sign


class Half:
    """The keys of all layers, or the values, in words of four bytes.

    They lie as `compress.runtime.packed` lays out a matrix: keys of a head with tokens as rows,
    values with channels. So attention multiplies what is cached where it lies. Bytes are codes with
    128 added.

        codes  [layers, pages, KV, blocks, words, 16, each]
        steps  [layers, pages, KV, PAGE_TOKENS, 1] bfloat16, where tokens have their own, else None
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        numbers: Numbers | None,
        scales: Sequence[Tensor | None],
        device: str,
        *,
        by_channel: bool,
    ) -> None:
        layers, pages, heads, self.width = shape
        self.dtype, self.numbers, self.scales = dtype, numbers, scales
        self.by_channel = by_channel  # whether the sixteen rows are channels
        stored = DTYPES[numbers] if numbers else dtype
        stored = torch.uint8 if numbers == "int8" else stored
        rows, columns = (self.width, PAGE_TOKENS) if by_channel else (PAGE_TOKENS, self.width)
        each = 4 // stored.itemsize
        words = (-(-rows // LANES), -(-columns // each), LANES, each)
        self.codes = _zeros((layers, pages, heads, *words), stored, device)
        self.steps: Tensor | None = None
        if scales and scales[0] is None:
            self.steps = _zeros((layers, pages, heads, PAGE_TOKENS, 1), torch.bfloat16, device)

    def write(self, layer: int, slots: Tensor, states: Tensor) -> None:
        """Put states [N, KV, D] into slots [N]."""
        page, token = slots // PAGE_TOKENS, slots % PAGE_TOKENS
        if self.numbers is not None:
            heads = states.transpose(0, 1)  # scales are told by head
            step = steps(heads, self.scales[layer], self.numbers)
            states = encode(heads, step, self.numbers).transpose(0, 1)
            if self.steps is not None:
                self.steps[layer, page, :, token] = step.transpose(0, 1).bfloat16()
        if self.codes.dtype is torch.uint8:
            states = states.contiguous().view(torch.uint8) ^ _MIDDLE
        codes, each = self.codes[layer], self.codes.shape[-1]
        if self.by_channel:
            codes[page, :, :, token // each, :, token % each] = _filled(states, LANES)
        else:
            codes[page, :, token // LANES, :, token % LANES] = _filled(states, each)

    def read(self, layer: int, table: Tensor, tokens: int) -> Tensor:
        """The first `tokens` of a request whose pages are `table` [P], [KV, tokens, D]."""
        used = table[: -(-tokens // PAGE_TOKENS)]
        found = self.codes[layer].index_select(0, used)  # [P, KV, blocks, words, 16, each]
        order = (1, 0, 3, 5, 2, 4) if self.by_channel else (1, 0, 2, 4, 3, 5)
        found = found.permute(order).reshape(found.shape[1], len(used) * PAGE_TOKENS, -1)
        found = found[:, :tokens, : self.width]
        if self.codes.dtype is torch.uint8:
            found = (found ^ _MIDDLE).view(torch.int8)
        if self.numbers is not None:
            found = decode(found, self.dtype)
        if self.steps is None:
            return found
        own = self.steps[layer].index_select(0, used).transpose(0, 1).flatten(1, 2)
        return found.mul_(own[:, :tokens].to(self.dtype))


class Pages:
    """Room for the keys and values of a fixed number of tokens, which requests share."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        scales: Sequence[KVScales] = (),
        device: str = "cpu",
    ) -> None:
        """Set pages aside: (layers, pages, KV, D) numbers of a dtype, on a device.

        On a CPU, memory that is never written is never taken. There are scales of one kind for
        each layer, or none where nothing is rounded.
        """
        scales, numbers = [x.on(device) for x in scales], scales[0].numbers if scales else None
        self.keys = Half(shape, dtype, numbers, [x.keys for x in scales], device, by_channel=False)
        self.values = Half(
            shape, dtype, numbers, [x.values for x in scales], device, by_channel=True
        )
        parts = (self.keys.codes, self.values.codes, self.keys.steps, self.values.steps)
        self._parts = [part for part in parts if part is not None]

    @property
    def nbytes(self) -> int:
        """Bytes set aside."""
        return sum(part.nbytes for part in self._parts)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [N, KV, D] of a layer into slots [N]."""
        self.keys.write(layer, slots, keys)
        self.values.write(layer, slots, values)

    def steps(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """What keys and values are to be multiplied by, [1 or KV, 1, 1 or D] float32 each.

        None where that is done, or nothing is rounded.
        """
        numbers = self.keys.numbers
        if numbers is None or self.keys.steps is not None:
            return None
        told = (half.scales[layer] for half in (self.keys, self.values))
        keys, values = (steps(torch.empty(0), scale, numbers) for scale in told)
        return keys, values

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages, from one to another, in order: a source may be the target of a later pair."""
        for source, target in pairs:
            for part in self._parts:
                part[:, target] = part[:, source]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros whose memory is taken only as it is written: torch's own would be written now.

    numpy would ask for huge pages, which a token in each of many layers takes whole: 0.3 s of a
    start went into clearing them.
    """
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    room = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(room, dtype=dtype).view(shape)


def _filled(states: Tensor, multiple: int) -> Tensor:
    """States [N, KV, D] as [N, KV, D / multiple, multiple], filled up."""
    filled: Tensor = pad(states, (0, -states.shape[-1] % multiple)).unflatten(-1, (-1, multiple))
    return filled

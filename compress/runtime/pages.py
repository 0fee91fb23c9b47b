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
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.kernels.kv import DTYPES, KVScales, Numbers, decode, encode, steps
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.packed import LANES

_MIDDLE = 128  # what is added to an int8 code to make it a byte without a sign


@dataclass(frozen=True)
class Half:
    """The keys of all layers, or the values, in words of four bytes.

    They lie as `compress.runtime.packed` lays out a matrix, sixteen rows side by side: keys of a
    head with tokens as rows, values with channels as rows. So attention's two products are products
    with what is cached, where it lies. Bytes are codes with 128 added.
    """

    codes: Tensor  # [layers, pages, KV, blocks, words, 16, each]
    steps: (
        Tensor | None
    )  # [layers, pages, KV, PAGE_TOKENS, 1] bfloat16, where tokens have their own
    width: int  # D
    by_channel: bool  # whether the sixteen rows are channels
    dtype: torch.dtype  # of the arithmetic
    numbers: Numbers | None  # what codes are; None: keys or values themselves

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, filled or not."""
        return self.codes.nbytes + (0 if self.steps is None else self.steps.nbytes)

    def write(self, layer: int, slots: Tensor, states: Tensor, scale: Tensor | None) -> None:
        """Put states [N, KV, D] into slots [N]; `scale` as in `KVScales`."""
        page, token = slots // PAGE_TOKENS, slots % PAGE_TOKENS
        if self.numbers is not None:
            heads = states.transpose(0, 1)  # scales are told by head
            step = steps(heads, scale, self.numbers)
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

    def copy(self, source: int, target: int) -> None:
        """Copy a page of every layer."""
        self.codes[:, target] = self.codes[:, source]
        if self.steps is not None:
            self.steps[:, target] = self.steps[:, source]


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
        """Set pages aside; on a CPU, memory that is never written is never taken.

        Args:
            shape: (layers, pages, KV, D).
            dtype: of keys and values.
            scales: of each layer, all of one kind; none where nothing is rounded.
            device: where they are.
        """
        self._scales = tuple(one.on(device) for one in scales)
        self.keys = _empty(shape, dtype, self._scales, device, by_channel=False)
        self.values = _empty(shape, dtype, self._scales, device, by_channel=True)

    @property
    def nbytes(self) -> int:
        """Bytes set aside."""
        return self.keys.nbytes + self.values.nbytes

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [N, KV, D] of a layer into slots [N]."""
        scales = self._scales[layer] if self._scales else None
        self.keys.write(layer, slots, keys, scales.keys if scales else None)
        self.values.write(layer, slots, values, scales.values if scales else None)

    def steps(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """What is held is to be multiplied by; None where that is done, or nothing is rounded.

        Returns:
            For keys and for values, [1 or KV, 1, 1 or D] float32.
        """
        scales = self._scales[layer] if self._scales else None
        if scales is None or scales.keys is None or scales.values is None:
            return None
        nothing = torch.empty(0)  # its scale is told
        return (
            steps(nothing, scales.keys, scales.numbers),
            steps(nothing, scales.values, scales.numbers),
        )

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages, from one to another, in order: a source may be the target of a later pair."""
        for source, target in pairs:
            self.keys.copy(source, target)
            self.values.copy(source, target)


def _empty(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    scales: Sequence[KVScales],
    device: str,
    *,
    by_channel: bool,
) -> Half:
    layers, pages, heads, width = shape
    numbers = scales[0].numbers if scales else None
    stored = (torch.uint8 if numbers == "int8" else DTYPES[numbers]) if numbers else dtype
    each = 4 // stored.itemsize
    rows, columns = (width, PAGE_TOKENS) if by_channel else (PAGE_TOKENS, width)
    words = (-(-rows // LANES), -(-columns // each), LANES, each)
    own = bool(scales) and scales[0].granularity == "token"
    return Half(
        _zeros((layers, pages, heads, *words), stored, device),
        _zeros((layers, pages, heads, PAGE_TOKENS, 1), torch.bfloat16, device) if own else None,
        width, by_channel, dtype, numbers,
    )  # fmt: skip


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

"""Keys and values of the tokens already read, preallocated and grown by doubling.

They are held in the dtype of the arithmetic or, where an artifact says so, as codes of one byte:
half of bfloat16. Scales that all tokens share need not be multiplied into what is read: codes are
exact in every dtype, so they are handed out as they are, and `steps` says by how much queries, and
what attention makes of values, are to be scaled. Steps that belong to a token are multiplied in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import RequestError
from compress.kernels.kv import DTYPES, KVScales, Numbers, decode, encode, steps


class KVCache:
    """Keys and values [layers, B, KV, T, D], of which the first `length` tokens are filled."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        limit: int,
        capacity: int = 256,
        scales: Sequence[KVScales] = (),
    ) -> None:
        """Allocate room for `capacity` tokens.

        Args:
            shape: (layers, B, KV, D).
            dtype: of keys and values.
            limit: tokens it may ever hold.
            capacity: tokens it holds before it first grows.
            scales: of each layer, all of one kind; none where nothing is rounded.
        """
        self.limit = limit
        self.length = 0
        self._scales = tuple(scales)
        self._keys = _Half.empty(shape, min(capacity, limit), dtype, scales)
        self._values = _Half.empty(shape, min(capacity, limit), dtype, scales)

    @property
    def capacity(self) -> int:
        """Tokens that fit without growing."""
        return self._keys.codes.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, filled or not."""
        return self._keys.nbytes + self._values.nbytes

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more.

        Raises:
            RequestError: they would pass the limit.
        """
        needed = self.length + tokens
        if needed > self.limit:
            raise RequestError(
                f"context: {needed:,} tokens, the model was made for {self.limit:,} "
                "(max_position_embeddings). Shorten the prompt or ask for fewer new tokens."
            )
        if needed > self.capacity:
            capacity = min(self.limit, max(needed, 2 * self.capacity))
            self._keys = self._keys.grown(self.length, capacity)
            self._values = self._values.grown(self.length, capacity)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, KV, T, D] behind what a layer holds; return all of it, [B, KV, length + T, D].

        What is returned is in the dtype of the arithmetic: views of what is held, or made of codes.
        """
        scales = self._scales[layer] if self._scales else None
        return (
            self._keys.write(layer, self.length, keys, scales.keys if scales else None),
            self._values.write(layer, self.length, values, scales.values if scales else None),
        )

    def steps(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """What `write` returns is to be multiplied by; None where it is keys and values themselves.

        Returns:
            For keys and for values, [1 or KV, 1, 1 or D] float32.
        """
        scales = self._scales[layer] if self._scales else None
        if scales is None or scales.keys is None or scales.values is None:
            return None
        nothing = torch.empty(0)
        return (
            steps(nothing, scales.keys, scales.numbers),
            steps(nothing, scales.values, scales.numbers),
        )

    def advance(self, tokens: int) -> None:
        """Count `tokens` as filled, once every layer has written them."""
        self.length += tokens


@dataclass(frozen=True)
class _Half:
    """The keys of all layers, or the values."""

    codes: Tensor  # [layers, B, KV, capacity, D]
    steps: Tensor | None  # [layers, B, KV, capacity, 1] where each token has its own
    dtype: torch.dtype  # of the arithmetic
    numbers: Numbers | None  # what codes are; None: keys or values themselves

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int],
        capacity: int,
        dtype: torch.dtype,
        scales: Sequence[KVScales],
    ) -> _Half:
        layers, batch, heads, width = shape
        numbers = scales[0].numbers if scales else None
        stored = DTYPES[numbers] if numbers else dtype
        own = torch.empty(layers, batch, heads, capacity, 1, dtype=torch.float16)
        return cls(
            torch.empty(layers, batch, heads, capacity, width, dtype=stored),
            own if scales and scales[0].granularity == "token" else None,
            dtype,
            numbers,
        )

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.steps is None else self.steps.nbytes)

    def write(self, layer: int, start: int, states: Tensor, scale: Tensor | None) -> Tensor:
        """Put states [B, KV, T, D] at token `start`; return all up to their end."""
        stop = start + states.shape[2]
        if self.numbers is not None:
            step = steps(states, scale, self.numbers)
            states = encode(states, step, self.numbers)
            if self.steps is not None:
                self.steps[layer, :, :, start:stop] = step
        self.codes[layer, :, :, start:stop] = states
        found = self.codes[layer, :, :, :stop]
        if self.numbers is not None:
            found = decode(found, self.dtype)
        if self.steps is None:
            return found
        return found.mul_(self.steps[layer, :, :, :stop].to(self.dtype))

    def grown(self, length: int, capacity: int) -> _Half:
        """The same with room for `capacity` tokens."""
        return _Half(
            _grown(self.codes, length, capacity),
            None if self.steps is None else _grown(self.steps, length, capacity),
            self.dtype,
            self.numbers,
        )


def _grown(old: Tensor, length: int, capacity: int) -> Tensor:
    layers, batch, heads, _, width = old.shape
    new = torch.empty(layers, batch, heads, capacity, width, dtype=old.dtype)
    new[:, :, :, :length] = old[:, :, :, :length]
    return new

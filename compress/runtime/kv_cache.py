"""Keys and values of the tokens already read, preallocated and grown by doubling."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.errors import RequestError


class KVCache:
    """Keys and values [layers, B, KV, T, D], of which the first `length` tokens are filled."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        limit: int,
        capacity: int = 256,
    ) -> None:
        """Allocate room for `capacity` tokens.

        Args:
            shape: (layers, B, KV, D).
            dtype: of keys and values.
            limit: tokens it may ever hold.
            capacity: tokens it holds before it first grows.
        """
        self._shape, self._dtype = shape, dtype
        self.limit = limit
        self.length = 0
        self._keys, self._values = (
            self._empty(min(capacity, limit)),
            self._empty(min(capacity, limit)),
        )

    @property
    def capacity(self) -> int:
        """Tokens that fit without growing."""
        return self._keys.shape[3]

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
            self._keys, self._values = (
                self._grown(self._keys, capacity),
                self._grown(self._values, capacity),
            )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, KV, T, D] behind what a layer holds; return all, views [B, KV, length + T, D]."""
        start, stop = self.length, self.length + keys.shape[2]
        self._keys[layer, :, :, start:stop] = keys
        self._values[layer, :, :, start:stop] = values
        return self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]

    def advance(self, tokens: int) -> None:
        """Count `tokens` as filled, once every layer has written them."""
        self.length += tokens

    def _empty(self, capacity: int) -> Tensor:
        layers, batch, heads, width = self._shape
        return torch.empty(layers, batch, heads, capacity, width, dtype=self._dtype)

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        new = self._empty(capacity)
        new[:, :, :, : self.length] = old[:, :, :, : self.length]
        return new

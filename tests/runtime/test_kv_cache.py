from __future__ import annotations

import pytest
import torch

from compress.errors import RequestError
from compress.runtime.kv_cache import KVCache


def make(limit=100, capacity=4):
    return KVCache((2, 1, 3, 5), dtype=torch.float32, limit=limit, capacity=capacity)


def test_growing_keeps_what_was_written():
    cache, written = make(), torch.randn(1, 3, 23, 5)
    for token in range(23):
        cache.reserve(1)
        for layer in range(2):
            one = written[:, :, token : token + 1] + layer
            keys, values = cache.write(layer, one, -one)
        cache.advance(1)
        assert torch.equal(keys, written[:, :, : token + 1] + 1)
        assert torch.equal(values, -keys)
    assert cache.capacity == 32


def test_capacity_doubles_and_ends_at_the_limit():
    cache = make(limit=10)
    cache.reserve(5)
    assert cache.capacity == 8
    cache.reserve(9)
    assert cache.capacity == 10


def test_a_full_context_is_refused():
    cache = make(limit=10)
    with pytest.raises(RequestError, match="11 tokens, the model was made for 10"):
        cache.reserve(11)

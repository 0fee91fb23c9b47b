from __future__ import annotations

import pytest
import torch

from compress.errors import RequestError
from compress.kernels.kv import KVScales, encode, fit, rounded, steps
from compress.runtime.kv_cache import KVCache

SHARED = ["tensor", "head", "channel"]


def make(limit=100, capacity=4, scales=(), dtype=torch.float32, width=5):
    return KVCache((2, 1, 3, width), dtype=dtype, limit=limit, capacity=capacity, scales=scales)


def scales_of(written, numbers, granularity):
    if granularity == "token":
        return KVScales(numbers, None, None)
    found = fit(written[0].transpose(0, 1), numbers, granularity=granularity, search="none")
    return KVScales(numbers, found, found)


def fill(cache, written):
    for token in range(written.shape[2]):
        cache.reserve(1)
        for layer in range(2):
            keys, values = cache.write(
                layer, written[:, :, token : token + 1], -written[:, :, token : token + 1]
            )
        cache.advance(1)
    return keys, values


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


@pytest.mark.parametrize("numbers", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("granularity", [*SHARED, "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_back_is_what_scales_make_of_it(granularity, numbers, dtype):
    written = torch.randn(1, 3, 23, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    scales = scales_of(written, numbers, granularity)
    cache = make(scales=[scales, scales], dtype=dtype)
    keys, values = fill(cache, written)
    exact = rounded(written, scales.keys, numbers)
    if granularity == "token":
        assert cache.steps(1) is None
        assert torch.equal(keys, exact.to(dtype))
        assert torch.equal(values, -keys)
    else:
        assert torch.equal(
            keys, encode(written, steps(written, scales.keys, numbers), numbers).to(dtype)
        )
        assert torch.equal(keys.float() * cache.steps(1)[0], exact)
    assert keys.dtype == values.dtype == dtype


@pytest.mark.parametrize(
    ("granularity", "share"), [*((name, 0.5) for name in SHARED), ("token", 33 / 64)]
)
def test_codes_take_half_the_bytes(granularity, share):
    written = torch.randn(1, 3, 8, 64)
    scales = scales_of(written, "int8", granularity)
    plain, coded = (
        make(scales=given, dtype=torch.bfloat16, width=64) for given in ([], [scales, scales])
    )
    assert coded.nbytes == share * plain.nbytes
    for cache in (plain, coded):
        fill(cache, written.bfloat16())
    assert coded.nbytes == share * plain.nbytes

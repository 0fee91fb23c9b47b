from __future__ import annotations

import pytest
import torch

from compress.kernels.kv import KVScales, encode, fit, rounded, steps
from compress.runtime.pages import Pages

SHARED = ["tensor", "head", "channel"]
TOKENS, TABLE = 45, torch.tensor([3, 1])
SLOTS = torch.tensor([TABLE[at // 32] * 32 + at % 32 for at in range(TOKENS)])


def make(scales=(), dtype=torch.float32, width=5):
    return Pages((2, 4, 3, width), dtype=dtype, scales=scales)


def scales_of(written, numbers, granularity):
    if granularity == "token":
        return KVScales(numbers, None, None)
    found = fit(written, numbers, granularity=granularity, search="none")
    return KVScales(numbers, found, found)


def fill(pages, written):
    """Write tokens in three parts; what layer 1 then holds."""
    for part in torch.arange(TOKENS).split([7, 1, 37]):
        for layer in range(2):
            pages.write(layer, SLOTS[part], written[part] * layer, -written[part] * layer)
    return (half.read(1, TABLE, TOKENS) for half in (pages.keys, pages.values))


def test_what_is_written_is_read_by_its_table():
    written = torch.randn(TOKENS, 3, 5)
    keys, values = fill(make(), written)
    assert torch.equal(keys, written.transpose(0, 1))
    assert torch.equal(values, -keys)


@pytest.mark.parametrize("granularity", [None, "token", "head"])
def test_a_copy_is_read_as_its_source(granularity):
    written = torch.randn(TOKENS, 3, 5)
    scales = () if granularity is None else (scales_of(written, "int8", granularity),) * 2
    pages = make(scales)
    keys, _ = fill(pages, written)
    pages.copy([(3, 0), (0, 2), (2, 2)])
    for page in (0, 2):
        table = torch.tensor([page, 1])
        assert torch.equal(pages.keys.read(1, table, TOKENS), keys)
        assert torch.equal(pages.values.read(1, table, TOKENS), -keys)


@pytest.mark.parametrize("numbers", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("granularity", [*SHARED, "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_back_is_what_scales_make_of_it(granularity, numbers, dtype):
    written = torch.randn(TOKENS, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    scales = scales_of(written, numbers, granularity)
    pages = make([scales, scales], dtype)
    keys, values = fill(pages, written)
    heads = written.transpose(0, 1)
    exact = rounded(heads, scales.keys, numbers)
    if granularity == "token":
        assert pages.steps(1) is None
        assert torch.equal(keys, exact.to(dtype))
        assert torch.equal(values, -keys)
    else:
        codes = encode(heads, steps(heads, scales.keys, numbers), numbers)
        assert torch.equal(keys, codes.to(dtype))
        assert torch.equal(keys.float() * pages.steps(1)[0], exact)
    assert keys.dtype == values.dtype == dtype


@pytest.mark.parametrize(
    ("granularity", "share"), [*((name, 0.5) for name in SHARED), ("token", 33 / 64)]
)
def test_codes_take_half_the_bytes(granularity, share):
    scales = scales_of(torch.randn(TOKENS, 3, 64), "int8", granularity)
    plain, coded = (make(given, torch.bfloat16, 64) for given in ([], [scales, scales]))
    assert coded.nbytes == share * plain.nbytes

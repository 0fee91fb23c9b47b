"""Packing against a slow version that treats a row as one big integer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.kernels.pack import WIDTHS, pack, unpack, words


def slow_pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """One Python integer a row, cut into 32-bit words."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (i * bits) for i, code in enumerate(row))
        cut = [(number >> (32 * w)) & 0xFFFFFFFF for w in range(words(len(row), bits))]
        rows.append([word - (1 << 32) if word >> 31 else word for word in cut])
    return torch.tensor(rows, dtype=torch.int32)


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)


matrices = st.tuples(
    st.integers(1, 5), st.integers(1, 130), st.sampled_from(WIDTHS), st.integers(0, 2**32 - 1)
)


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_pack_equals_big_integer(matrix):
    rows, columns, bits, seed = matrix
    codes = random_codes(rows, columns, bits, seed)
    assert torch.equal(pack(codes, bits), slow_pack(codes, bits))


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_unpack_undoes_pack(matrix):
    rows, columns, bits, seed = matrix
    codes = random_codes(rows, columns, bits, seed)
    assert torch.equal(unpack(pack(codes, bits), bits, columns), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_shapes_and_dtypes(bits):
    packed = pack(random_codes(7, 37, bits), bits)
    assert packed.shape == (7, -(-37 * bits // 32))
    assert packed.dtype == torch.int32
    assert unpack(packed, bits, 37).dtype == torch.uint8


@pytest.mark.parametrize("bits", WIDTHS)
def test_some_rows_unpack_without_the_others(bits):
    codes = random_codes(9, 50, bits)
    assert torch.equal(unpack(pack(codes, bits)[3:5], bits, 50), codes[3:5])


@pytest.mark.parametrize("columns", [40, 64])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_transposed_matrix_packs_like_its_copy(bits, columns):
    codes = random_codes(columns, 6, bits).T
    assert torch.equal(pack(codes, bits), pack(codes.contiguous(), bits))
    assert torch.equal(unpack(pack(codes, bits).T.contiguous().T, bits, columns), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_equals_compressed_tensors(bits):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = random_codes(5, 96, bits)
    signed = (codes.int() - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(pack(codes, bits), helpers.pack_to_int32(signed, bits))


def test_what_cannot_be_packed_is_said():
    with pytest.raises(ValueError, match="bits=5; codes are packed at 2, 3, 4, 8 bits"):
        pack(random_codes(1, 8, 4), 5)
    with pytest.raises(ValueError, match="code 9 does not fit 3 bits"):
        pack(torch.tensor([[9]], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="33 codes of 4 bits fill 5 words, not 4"):
        unpack(torch.zeros(2, 4, dtype=torch.int32), 4, 33)

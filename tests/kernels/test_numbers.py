import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.kernels.numbers import BITS, LARGEST, decode, encode, nearest
from tests.oracles import nearest_code, small_floats

TABLES = {"fp8_e4m3": small_floats(4, 3), "fp4_e2m1": small_floats(2, 1)}
NUMBERS = sorted(TABLES)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_codes_stand_for_what_the_definition_says(numbers):
    codes = torch.arange(2 ** BITS[numbers], dtype=torch.uint8)
    expected = torch.tensor(TABLES[numbers])
    assert torch.allclose(decode(codes, numbers), expected, rtol=0, atol=0, equal_nan=True)
    assert decode(codes, numbers).nan_to_num().max() == LARGEST[numbers]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_every_number_is_its_own_nearest(numbers):
    table = [number for number in TABLES[numbers] if not math.isnan(number)]
    exact = torch.tensor(table)
    assert torch.equal(nearest(exact, numbers), exact)
    assert torch.equal(decode(encode(exact, numbers), numbers), exact)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_values_halfway_go_to_the_even_code(numbers):
    table = sorted({number for number in TABLES[numbers] if not math.isnan(number)})
    halves = [(a + b) / 2 for a, b in itertools.pairwise(table)]
    expected = [nearest_code(value, TABLES[numbers]) for value in halves]
    assert encode(torch.tensor(halves), numbers).tolist() == expected


@pytest.mark.parametrize("numbers", NUMBERS)
@given(values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=16))
def test_the_nearest_number_is_found_by_trying_all(numbers, values):
    expected = [nearest_code(value, TABLES[numbers]) for value in values]
    given_values = torch.tensor(values)
    assert encode(given_values, numbers).tolist() == expected
    rounded = nearest(given_values, numbers).tolist()
    assert rounded == [TABLES[numbers][code] for code in expected]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_what_lies_beyond_becomes_the_largest(numbers):
    far = torch.tensor([1e30, -1e30, torch.inf, -torch.inf])
    largest = LARGEST[numbers]
    assert nearest(far, numbers).tolist() == [largest, -largest, largest, -largest]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_a_small_negative_value_becomes_plain_zero(numbers):
    assert encode(torch.tensor([-1e-9, -0.0, 0.0]), numbers).tolist() == [0, 0, 0]


def test_shapes():
    values = torch.randn(3, 5, 2)
    for numbers in NUMBERS:
        assert nearest(values, numbers).shape == encode(values, numbers).shape == (3, 5, 2)
        assert decode(encode(values, numbers), numbers).shape == (3, 5, 2)

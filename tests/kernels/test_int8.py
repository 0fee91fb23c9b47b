"""Integer products against float64, alone and with outlier columns."""

from dataclasses import replace

import pytest
import torch

from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.grid import Rounded, fit, round_to_nearest, storable
from compress.kernels.int8 import Int8Matrix, int8_matrix, integer_product, product, round_rows

ROWS, IN, OUT = 33, 96, 40


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def x() -> torch.Tensor:
    found = drawn(ROWS, IN)
    found[:, 5] += 30  # an outlier column
    found[3, 70] = -12  # and a column with one outlier
    return found


@pytest.fixture
def weight() -> torch.Tensor:
    return drawn(OUT, IN, seed=1)


def rounded_rows(weight: torch.Tensor, inputs: Inputs) -> Rounded:
    return replace(round_rows(weight), inputs=inputs)


def matrix(weight: torch.Tensor, inputs: Inputs) -> Int8Matrix:
    found = int8_matrix(rounded_rows(weight, inputs))
    assert found is not None
    return found


def oracle(x: torch.Tensor, rounded: Rounded) -> torch.Tensor:
    """Row by row, in float64, as the paper says it."""
    inputs, dense = rounded.inputs, rounded.dequantize().double()
    listed = set([] if inputs.columns is None else inputs.columns.tolist())
    if inputs.threshold:
        listed |= {i for i in range(x.shape[1]) if bool((x[:, i].abs() >= inputs.threshold).any())}
    inner = [i for i in range(x.shape[1]) if i not in listed]
    outer = sorted(listed)
    y = torch.zeros(x.shape[0], dense.shape[0], dtype=torch.float64)
    for n, row in enumerate(x.double()):
        step = row[inner].abs().max() / 127
        steps = (row[inner] / step).round()
        y[n] = step * (dense[:, inner] @ steps) + dense[:, outer] @ row[outer]
    return y


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs("int8"),
        Inputs("int8", threshold=6.0),
        Inputs("int8", columns=torch.tensor([5, 70])),
        Inputs("int8", columns=torch.tensor([], dtype=torch.long)),
    ],
    ids=["w8a8", "dynamic", "static", "empty"],
)
def test_products_equal_a_float64_oracle(x, weight, inputs):
    rounded = rounded_rows(weight, inputs)
    found = int8_matrix(rounded).multiply(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), oracle(x, rounded), rtol=1e-5, atol=1e-4)


def test_products_equal_those_of_the_numbers_that_round_inputs_writes_out(x, weight):
    for inputs in (Inputs("int8"), Inputs("int8", threshold=6.0)):
        rounded = rounded_rows(weight, inputs)
        expected = round_inputs(x, inputs).double() @ rounded.dequantize().double().T
        torch.testing.assert_close(
            int8_matrix(rounded).multiply(x).double(), expected, rtol=1e-5, atol=1e-4
        )
        torch.testing.assert_close(
            inputs.multiply(x, rounded.dequantize()).double(), expected, rtol=1e-5, atol=1e-4
        )


def test_integer_products_are_exact():
    x = torch.randint(-128, 128, (17, 300), generator=torch.Generator().manual_seed(0))
    w = torch.randint(-128, 128, (9, 300), generator=torch.Generator().manual_seed(1))
    assert torch.equal(integer_product(x.to(torch.int8), w.to(torch.int8)).long(), x @ w.T)


def test_without_outliers_rows_do_not_depend_on_each_other(x, weight):
    for inputs in (Inputs("int8"), Inputs("int8", columns=torch.tensor([5, 70]))):
        product = matrix(weight, inputs)
        alone = torch.cat([product.multiply(row[None]) for row in x])
        torch.testing.assert_close(alone, product.multiply(x), rtol=1e-6, atol=1e-5)


def test_with_a_threshold_a_row_depends_on_the_others_and_only_on_their_outliers(x, weight):
    product = matrix(weight, Inputs("int8", threshold=6.0))
    plain = x[:3]  # column 70 is an outlier in row 3 alone
    alone = product.multiply(plain)
    assert torch.equal(product.multiply(x[[0, 1, 2, 4]])[:3], alone)
    assert not torch.equal(product.multiply(x[:4])[:3], alone)
    fixed = matrix(weight, Inputs("int8", columns=torch.tensor([5, 70])))
    torch.testing.assert_close(product.multiply(x[:4]), fixed.multiply(x[:4]))


def test_outlier_columns_lower_the_error(x, weight):
    exact = x.double() @ weight.double().T

    def error(inputs):
        return float((matrix(weight, inputs).multiply(x) - exact).square().mean())

    assert error(Inputs("int8", threshold=6.0)) < error(Inputs("int8")) / 4


def test_bfloat16_inputs_are_multiplied_as_they_are(x, weight):
    for inputs in (Inputs("int8"), Inputs("int8", threshold=6.0)):
        rounded = rounded_rows(weight, inputs)
        narrow = x.bfloat16()
        found = int8_matrix(rounded).multiply(narrow)
        torch.testing.assert_close(
            found.double(), oracle(narrow.float(), rounded), rtol=1e-2, atol=0.5
        )
        dense = inputs.multiply(narrow, rounded.dequantize().bfloat16())
        torch.testing.assert_close(dense, found, rtol=1e-2, atol=0.5)


def test_shapes(weight):
    product = matrix(weight, Inputs("int8", threshold=6.0))
    assert product.multiply(drawn(2, 3, IN)).shape == (2, 3, OUT)
    assert product.multiply(drawn(IN)).shape == (OUT,)


def test_rows_are_rounded_by_their_largest_weight(weight):
    rounded = rounded_rows(weight, Inputs("int8"))
    largest = weight.abs().amax(1, keepdim=True)
    assert torch.equal(rounded.scale, storable(largest / 127))
    assert bool(((rounded.dequantize() - weight).abs() <= rounded.scale * 0.8).all())
    assert int(rounded.codes.min()) >= 1


def test_other_weights_and_inputs_are_nothing_for_integer_products(weight):
    inputs = Inputs("int8")
    scale, zero = fit(weight, bits=8, group_size=32, sym=True, search="none")
    grouped = replace(round_to_nearest(weight, scale, zero, bits=8, sym=True), inputs=inputs)
    whole = rounded_rows(weight, inputs)
    assert product(grouped) is inputs
    assert isinstance(product(whole), Int8Matrix)
    floats = Inputs("fp8_e4m3")
    assert product(replace(whole, inputs=floats)) is floats
    assert product(replace(whole, inputs=None)) is None


def test_products_of_outliers_are_float32_whatever_the_inputs_are(weight):
    x = drawn(ROWS, IN).sign().half()  # so that no other column is a tie
    x[:, 5] = 900  # times a code of 127 it is beyond float16
    found = rounded_rows(weight, Inputs("int8", threshold=6.0))
    exact = oracle(x, found)
    y = matrix(weight, found.inputs).multiply(x)
    assert (y - exact).abs().max() < 1e-5 * exact.abs().max()

"""Floating codes in the runtime: expanded at load, inputs rounded as the artifact says."""

import dataclasses

import pytest
import torch

from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.floats import FloatGrid, fit
from compress.runtime.linear import linear

GRIDS = {
    "fp8": FloatGrid("fp8_e4m3", "float", -1),
    "nvfp4": FloatGrid("fp4_e2m1", "e4m3", 16, over=256.0),
    "mxfp4": FloatGrid("fp4_e2m1", "e8m0", 32),
}
WEIGHT = torch.randn(96, 192, generator=torch.Generator().manual_seed(0))
X = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
each = pytest.mark.parametrize("name", GRIDS)


def rounded(name, inputs=None, weight=WEIGHT):
    found = GRIDS[name].round(weight, fit(weight, GRIDS[name]))
    return dataclasses.replace(found, inputs=inputs)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_expanded_and_multiplied(name, dtype):
    made = linear(rounded(name), torch.ones(96), dtype)
    exact = X.to(dtype).double() @ rounded(name).dequantize().double().T + 1
    assert made.path == "expanded"
    assert (made(X.to(dtype)).double() - exact).norm() / exact.norm() < 2**-7
    assert made(X.to(dtype)).dtype == dtype


@each
@pytest.mark.parametrize(
    "inputs",
    [Inputs("fp8_e4m3"), Inputs("fp8_e4m3", scale=0.01), Inputs("fp4_e2m1", group_size=32)],
)
def test_inputs_are_rounded_first(name, inputs):
    made = linear(rounded(name, inputs), torch.ones(96), torch.float32)
    exact = round_inputs(X, inputs).double() @ rounded(name).dequantize().double().T + 1
    assert made.path == "rounding"
    torch.testing.assert_close(made(X).double(), exact, rtol=1e-4, atol=1e-4)

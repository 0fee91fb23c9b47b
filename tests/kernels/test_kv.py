import numpy as np
import pytest
import torch

from compress.kernels.grid import storable
from compress.kernels.kv import KVScales, decode, encode, fit, relative_error, rounded, steps

GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randn(300, 3, 16, generator=GENERATOR) * torch.tensor([1.0, 4.0, 0.3])[:, None]
TOKENS[7] *= 20  # as the first token of a window often is
SHAPES = {"tensor": (1,), "head": (3, 1), "channel": (3, 16)}
NUMBERS = ["int8", "fp8_e4m3"]


def heads(tokens=TOKENS):
    return tokens.transpose(0, 1)


def e4m3() -> np.ndarray:
    """Every finite magnitude of four bits of exponent and three of mantissa, by the definition."""
    below = [fraction / 8 * 2.0**-6 for fraction in range(8)]
    above = [(1 + f / 8) * 2.0 ** (e - 7) for e in range(1, 16) for f in range(8)]
    return np.array([*below, *above][:-1])  # the last one stands for NaN


def nearest_e4m3(exact: np.ndarray) -> np.ndarray:
    """The nearest of them in float64; halves go to the even mantissa."""
    known = e4m3()
    distance = np.abs(np.abs(exact).clip(max=448)[..., None] - known)
    even = np.arange(len(known)) % 2
    return np.copysign(known[np.lexsort((even + 0 * distance, distance))[..., 0]], exact)


def test_int8_rounds_as_float64_does():
    scale = fit(TOKENS, "int8", granularity="head", search="mse")
    exact = heads().double().numpy() / scale.double().numpy()[:, None]
    codes = np.rint(exact).clip(-128, 127)
    step = steps(heads(), scale, "int8")
    assert np.array_equal(encode(heads(), step, "int8").numpy(), codes)
    meant = codes * scale.double().numpy()[:, None]
    assert np.array_equal(rounded(heads(), scale, "int8").double().numpy(), meant)


def test_fp8_rounds_as_float64_does():
    scale = fit(TOKENS, "fp8_e4m3", granularity="tensor", search="none")
    exact = (heads() / scale).double().numpy()
    found = encode(heads(), steps(heads(), scale, "fp8_e4m3"), "fp8_e4m3").double().numpy()
    assert np.array_equal(found, nearest_e4m3(exact))


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize(("granularity", "shape"), SHAPES.items())
def test_shapes(granularity, shape, numbers):
    scale = fit(TOKENS, numbers, granularity=granularity, search="mse")
    assert scale.shape == shape
    assert scale.dtype == torch.float32
    assert KVScales(numbers, scale, scale).granularity == granularity
    assert torch.equal(storable(scale), scale)
    batch = heads()[None].expand(2, -1, -1, -1)
    keys, values = KVScales(numbers, scale, scale).round(batch.half(), batch)
    assert keys.shape == values.shape == batch.shape
    assert (keys.dtype, values.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_without_a_search_nothing_is_clipped_by_a_step(numbers):
    largest = {"int8": 127.5, "fp8_e4m3": 449.75}[numbers]  # scales have eight bits
    for granularity in SHAPES:
        scale = fit(TOKENS, numbers, granularity=granularity, search="none")
        assert (heads() / steps(heads(), scale, numbers)).abs().max() < largest


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("granularity", SHAPES)
def test_a_search_lowers_the_error(granularity, numbers):
    plain, searched = (
        relative_error(
            TOKENS, fit(TOKENS, numbers, granularity=granularity, search=search), numbers
        )
        for search in ("none", "mse")
    )
    assert searched <= plain


def test_the_finer_the_scales_the_smaller_the_error():
    scales = [fit(TOKENS, "int8", granularity=name, search="none") for name in SHAPES]
    errors = [relative_error(TOKENS, scale, "int8") for scale in (*scales, None)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("granularity", [*SHAPES, "token"])
def test_what_is_rounded_already_is_left_alone(granularity, numbers):
    scale = None
    if granularity != "token":
        scale = fit(TOKENS, numbers, granularity=granularity, search="none")
    for dtype in (torch.float32, torch.bfloat16):
        once = rounded(heads().to(dtype), scale, numbers).to(dtype)
        assert torch.equal(rounded(once, scale, numbers).to(dtype), once)


@pytest.mark.parametrize("search", ["none", "mse"])
def test_channels_that_positions_turn_into_each_other_share_a_scale_for_every_angle(search):
    scale = fit(TOKENS, "int8", granularity="channel", search=search, rotated=True)
    assert torch.equal(scale[:, :8], scale[:, 8:])
    if search == "none":
        angle = torch.rand(300, 1, 8, generator=GENERATOR) * 7
        first, second = TOKENS[..., :8], TOKENS[..., 8:]
        turned = torch.cat(
            [
                first * angle.cos() - second * angle.sin(),
                first * angle.sin() + second * angle.cos(),
            ],
            dim=-1,
        )
        assert (heads(turned) / steps(heads(), scale, "int8")).abs().max() < 127.5


def test_each_token_rounds_its_heads_for_itself():
    alone = rounded(heads()[:, 3:4], None, "int8")
    assert torch.equal(rounded(heads(), None, "int8")[:, 3:4], alone)


def test_zeros_stay_zeros():
    nothing = torch.zeros(4, 2, 8)
    for granularity in SHAPES:
        scale = fit(nothing, "int8", granularity=granularity, search="mse")
        assert not rounded(heads(nothing), scale, "int8").any()
    assert not rounded(heads(nothing), None, "int8").any()
    assert relative_error(nothing, None, "int8") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_code_is_the_number_that_torch_takes_it_for(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(1, 2, -1)
    floats = every.view(torch.float8_e4m3fn)
    known = ~floats.float().isnan()
    assert torch.equal(decode(floats, dtype)[known], floats.to(dtype)[known])
    assert torch.equal(decode(every.view(torch.int8), dtype), every.view(torch.int8).to(dtype))

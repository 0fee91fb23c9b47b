"""Float32 products: who makes them, and that they stay float32."""

import pytest
import torch

from compress.kernels import precision

MATMUL = torch.backends.mkldnn.matmul


def product_error(rows: int, inner: int, columns: int) -> float:
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    wanted = left.double() @ right.double().T
    return float(((left @ right.T) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("shape", [(1, 576, 1536), (7, 33, 5), (512, 1536, 576), (300, 4096, 300)])
def test_products_stay_float32_whoever_makes_them(shape) -> None:
    torch.manual_seed(1)
    precision.prefer_onednn()
    assert product_error(*shape) < 2**-17


def test_leave_that_was_made_use_of_is_taken_back(monkeypatch) -> None:
    monkeypatch.setattr(precision, "_error", lambda *shape: 2**-10)
    before = MATMUL.fp32_precision
    assert not precision.prefer_onednn()
    assert MATMUL.fp32_precision == before


def test_processors_with_units_for_bfloat16_are_not_asked(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    before = MATMUL.fp32_precision
    assert not precision.prefer_onednn()
    assert MATMUL.fp32_precision == before


def test_inputs_rounded_to_bfloat16_would_be_noticed(monkeypatch) -> None:
    real = torch.Tensor.__matmul__

    def rounding(left, right):
        if left.dtype == torch.float32:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return real(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert not precision.prefer_onednn()


def test_the_run_s_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    precision.prefer_onednn()
    assert torch.equal(torch.rand(1), wanted)

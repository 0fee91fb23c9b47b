"""Inputs rounded to eight bits, against float64 and by their own rules."""

import pytest
import torch

from compress.kernels.activations import Inputs, outliers, round_inputs


@pytest.fixture
def x() -> torch.Tensor:
    drawn = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    drawn[..., 7] *= 20
    return drawn.bfloat16()


def test_int8_equals_a_plain_float64_version(x):
    exact = x.double()
    step = exact.abs().amax(-1, keepdim=True) / 127
    expected = (exact / step).round() * step
    torch.testing.assert_close(
        round_inputs(x, Inputs("int8")).double(), expected, rtol=1e-6, atol=0
    )


def test_no_input_moves_by_more_than_half_a_step(x):
    step = x.float().abs().amax(-1, keepdim=True) / 127
    moved = (round_inputs(x, Inputs("int8")) - x.float()).abs()
    assert bool((moved <= step / 2 * 1.0001).all())


def test_rows_of_zeros_stay_zeros():
    for numbers in ("int8", "fp8_e4m3"):
        assert not round_inputs(torch.zeros(2, 4), Inputs(numbers)).any()


def test_outlier_columns_stay_and_do_not_widen_the_steps(x):
    inputs = Inputs("int8", threshold=6.0)
    kept = outliers(x, inputs)
    found = round_inputs(x, inputs)
    assert kept.nonzero().flatten().tolist() == [7]
    assert torch.equal(found[..., 7], x[..., 7].float())
    rest = torch.cat([x[..., :7], x[..., 8:]], -1)
    assert torch.equal(
        torch.cat([found[..., :7], found[..., 8:]], -1), round_inputs(rest, Inputs("int8"))
    )


def test_a_static_set_of_columns_stays_whatever_is_in_them(x):
    found = round_inputs(x, Inputs("int8", columns=torch.tensor([0, 7])))
    assert torch.equal(found[..., [0, 7]], x[..., [0, 7]].float())


def test_without_outliers_and_with_a_static_set_no_row_depends_on_the_others(x):
    rows = x.view(-1, 32)
    for inputs in (Inputs("int8"), Inputs("fp8_e4m3"), Inputs("int8", columns=torch.tensor([7]))):
        alone = torch.cat([round_inputs(row[None], inputs) for row in rows])
        assert torch.equal(alone, round_inputs(rows, inputs))


def test_dynamic_outliers_depend_on_the_batch():
    rows = torch.tensor([[1.0, 2.0, 3.0], [9.0, 1.0, 1.0]])
    inputs = Inputs("int8", threshold=6.0)
    alone, beside = round_inputs(rows[:1], inputs), round_inputs(rows, inputs)[:1]
    assert alone[0, 0] != 1.0 or alone[0, 0] == beside[0, 0]
    assert beside[0, 0] == 1.0  # column 0 is an outlier because of the other row


def test_fp8_rounds_as_torch_does_after_scaling(x):
    step = x.float().abs().amax(-1, keepdim=True) / 448
    expected = (x.float() / step).to(torch.float8_e4m3fn).float() * step
    assert torch.equal(round_inputs(x, Inputs("fp8_e4m3")), expected)


def test_a_static_scale_clips():
    x = torch.tensor([[-300.0, 0.26, 300.0]])
    assert round_inputs(x, Inputs("int8", scale=0.5)).tolist() == [[-64.0, 0.5, 63.5]]
    assert round_inputs(x * 10, Inputs("fp8_e4m3", scale=1.0)).tolist() == [[-448.0, 2.5, 448.0]]


def test_inputs_are_left_alone(x):
    before = x.clone()
    round_inputs(x, Inputs("int8", threshold=6.0))
    same = x.float()
    kept = same.clone()
    round_inputs(same, Inputs("int8", threshold=6.0))
    assert torch.equal(x, before)
    assert torch.equal(same, kept)

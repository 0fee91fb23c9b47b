import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from compress.surgery.attention import _Learning, causal


@pytest.mark.parametrize("tokens", [65, 128, 200])
@pytest.mark.parametrize(("heads", "shared"), [(9, 3), (4, 4), (4, 1)])
def test_slices_are_closer_to_float64_than_torchs_fused_attention(tokens, heads, shared):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, tokens, 32, generator=generator).bfloat16()
    k, v = (torch.randn(2, shared, tokens, 32, generator=generator).bfloat16() for _ in range(2))
    exact = scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True
    )
    fused = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    ours = causal(q, k, v, 32**-0.5).transpose(1, 2)
    assert (ours - exact).abs().mean() < 1.05 * (fused - exact).abs().mean()
    assert (ours - exact).abs().max() < 0.05


@pytest.mark.parametrize("tokens", [65, 130])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4)])
def test_gradients_of_slices_are_about_as_close_to_float64_as_those_of_fused_attention(
    tokens, heads, shared
):
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn(2, count, tokens, 32, generator=generator).bfloat16().requires_grad_()
        for count in (heads, shared, shared)
    ]
    above = torch.randn(2, tokens, heads, 32, generator=generator).bfloat16()
    exact, fused, ours = (
        torch.autograd.grad(attend(*(x.to(dtype) for x in made)), made, above.to(dtype))
        for attend, dtype in (
            (_fused, torch.float64),
            (_fused, torch.bfloat16),
            (_learning, torch.bfloat16),
        )
    )
    for right, theirs, own in zip(exact, fused, ours, strict=True):
        assert (own - right).norm() < 2 * (theirs - right).norm()
        assert (own - right).norm() < 0.01 * right.norm()


def _fused(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _learning(q, k, v):
    return _Learning.apply(q, k, v, 32**-0.5)

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from compress.surgery.attention import causal


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

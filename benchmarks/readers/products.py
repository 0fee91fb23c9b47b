"""Who multiplies float32 matrices for the readers: the faster of two libraries, if it is exact."""

from __future__ import annotations

import torch


def prefer_onednn() -> None:
    """Have oneDNN make float32 products where it makes them in float32.

    torch asks it only when inputs may be rounded to bfloat16, of which it makes use on processors
    with units for that. Whether this one does shows in a product.
    """
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    left, right = torch.sin(torch.arange(2.0 * 600 * 600)).view(2, 600, 600)
    exact = left.double() @ right.double()
    error = ((left @ right).double() - exact).abs().max() / exact.abs().max()
    if error > 2.0**-17:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"

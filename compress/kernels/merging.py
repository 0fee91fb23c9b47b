"""Let several heads share keys and values: the one head that loses least of what they held.

Values of H heads are cut to the D directions that their readers miss least, so that o_proj takes
them apart again. Keys are turned by RoPE, plane by plane of two channels; what commutes with it is
one complex number a plane. Keys of H heads are merged with the numbers that keep most of the
scores, and queries are multiplied by those that undo them. Equal heads lose nothing.

Source: merging by the mean: Ainslie et al. 2023 (GQA), arXiv:2305.13245.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_heads(rows: Tensor, heads: int) -> Tensor:
    """The mean of heads' rows (or biases) [H · D, …]: [D, …]."""
    return rows.view(heads, -1, *rows.shape[1:]).float().mean(0)


def value_merge(moments: Tensor, readers: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How to merge values, and how to take them apart again.

    Minimises E‖G^½ (v - U P v)‖² over P [D, H·D] and U [H·D, D].

    Args:
        moments: [H · D, H · D] float32, E[v vᵀ] of the values of all heads side by side.
        readers: [H, D, D] float32, for each head the sum of Wᵀ W over what o_proj reads it with.
        size: D.

    Returns:
        P and U.
    """
    G = torch.block_diag(*readers).double()  # [HD, HD]
    root, back = _roots(G)
    seen = root @ moments.double() @ root
    directions = torch.linalg.eigh(seen).eigenvectors[:, -size:]  # [HD, D]
    directions = directions * _sign(directions)
    return (directions.T @ root).float(), (back @ directions).float()


def _roots(G: Tensor) -> tuple[Tensor, Tensor]:
    """G^½ and its inverse where there is one."""
    values, vectors = torch.linalg.eigh(G)
    values = values.clamp_min(0).sqrt()
    small = values < values.max() * 1e-6
    inverse = torch.where(small, 0.0, 1 / torch.where(small, 1.0, values))
    return (vectors * values) @ vectors.T, (vectors * inverse) @ vectors.T


def _sign(directions: Tensor) -> Tensor:
    """Signs that make the largest entry of each column positive: eigenvectors have none."""
    largest = directions.abs().argmax(0)
    return directions.gather(0, largest[None]).sgn()


def key_merge(moments: Tensor, asked: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How to merge keys that are turned in the planes (j, j + D/2), and what that makes of them.

    Args:
        moments: [H · D, H · D] float32, E[k kᵀ] of the keys of all heads side by side, unturned.
        asked: [H, D/2] float32, the mean square of queries on each plane, summed over the heads
            that ask it.
        size: D.

    Returns:
        merge [H, D/2] complex: the merged key is the sum of merge · k over heads.
        undo [H, D/2] complex: a head's key was, as near as can be, undo times the merged key.
    """
    heads, half = len(asked), size // 2
    S = moments.double().view(heads, 2, half, heads, 2, half)
    plane = torch.arange(half, device=moments.device)
    aa, bb = S[:, 0, plane, :, 0, plane], S[:, 1, plane, :, 1, plane]  # [D/2, H, H]
    ba, ab = S[:, 1, plane, :, 0, plane], S[:, 0, plane, :, 1, plane]
    cov = torch.complex(aa + bb, ba - ab)  # E[z z*], z = a + ib
    root = asked.double().clamp_min(asked.max().double() * 1e-9).sqrt().T  # [D/2, H]
    cov = cov * root[:, :, None] * root[:, None, :]
    first = torch.linalg.eigh(cov).eigenvectors[:, :, -1]  # [D/2, H]
    largest = first.gather(1, first.abs().argmax(1, keepdim=True))
    first = first * largest.conj() / largest.abs()
    # scaled so that the merged key is as large as one of those it was made of
    scale = root.square().sum(1, keepdim=True).sqrt()
    merge, undo = first.conj() * root / scale, first / root * scale
    return merge.T.to(torch.complex64), undo.T.to(torch.complex64)


def merged_keys(rows: Tensor, merge: Tensor) -> Tensor:
    """The merged head of keys' rows (or biases) [H · D, …]: [D, …]."""
    z = _planes(rows, len(merge))  # [H, D/2, …]
    return _flat((z * _beside(merge, z)).sum(0)[None])


def asking(rows: Tensor, undo: Tensor) -> Tensor:
    """Rows (or biases) of queries [Q · D, …] that ask the merged head, Q / H of them each head."""
    z = _planes(rows, rows.shape[0] // (2 * undo.shape[1]))
    each = undo.repeat_interleave(len(z) // len(undo), 0).conj()
    return _flat(z * _beside(each, z))


def _planes(rows: Tensor, heads: int) -> Tensor:
    """Rows [H · D, …] as complex numbers, one a plane: [H, D/2, …]."""
    a, b = rows.float().view(heads, 2, -1, *rows.shape[1:]).unbind(1)
    return torch.complex(a.contiguous(), b.contiguous())


def _flat(z: Tensor) -> Tensor:
    """Back again: [H, D/2, …] becomes [H · D, …]."""
    return torch.stack([z.real, z.imag], 1).flatten(0, 2)


def _beside(numbers: Tensor, z: Tensor) -> Tensor:
    return numbers.view(*numbers.shape, *[1] * (z.dim() - numbers.dim()))

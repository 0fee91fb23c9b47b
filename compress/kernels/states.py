"""How far hidden states of a student are from those of its teacher."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Measure = Literal["mse", "cosine"]
_LEAST = 1e-12  # a length, squared, below which a state has none


def apart(student: Tensor, teacher: Tensor, measure: Measure, shares: Tensor) -> Tensor:
    """How far states are apart, with gradients by the student's.

    Args:
        student: [N, D], any float; computed with in float32 at least.
        teacher: [N, D], of the same tokens.
        measure: `mse` is the squared distance of a token over the squared length of the teacher's
            state, so that the first token, whose states are hundreds of times as long as others,
            does not decide alone, and so that it means the same at every depth; `cosine` is one
            less the cosine of the angle between both.
        shares: [N], of each token in the mean; they add up to 1.

    Returns:
        A scalar: 0 where they are alike.

    Source: mean squares of blocks: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351; cosines: Sanh et
    al. 2019 (DistilBERT), arXiv:1910.01108.
    """
    exact = torch.promote_types(student.dtype, torch.float32)
    own, theirs = student.to(exact), teacher.to(exact)
    length = theirs.square().sum(-1).clamp_min(_LEAST)
    if measure == "mse":
        each = (own - theirs).square().sum(-1) / length
    else:
        both = own.square().sum(-1).clamp_min(_LEAST) * length
        each = 1 - (own * theirs).sum(-1) * both.rsqrt()
    return (each * shares.to(exact)).sum()

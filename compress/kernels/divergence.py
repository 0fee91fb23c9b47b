"""How far what one model says is from what another says."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of each token, in nats, from logits [N, V] float32: [N]."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    apart = torch.sub(p, q, out=q)
    return p.exp_().mul_(apart).sum(-1).clamp_min(0)

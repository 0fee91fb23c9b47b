"""How far what one model says is from what another says, and how surely so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of each token, in nats, from logits [N, V] float32: [N]."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    apart = torch.sub(p, q, out=q)
    return p.exp_().mul_(apart).sum(-1).clamp_min(0)


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t over two values or more."""
    from scipy.stats import t

    times = float(t.ppf(0.975, len(values) - 1))
    return times * statistics.stdev(values) / math.sqrt(len(values))

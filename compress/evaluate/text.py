"""Perplexity of a model, and its divergence from another, from final hidden states.

Logits are made a few hundred tokens at a time: two full [N, V] tensors are never held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compress.calibrate.tokens import fingerprint
from compress.errors import EvaluationError
from compress.kernels.divergence import kl
from compress.results import Divergence, Perplexity
from compress.surgery.walk import Weights, head_of, logits

_TOKENS = 512  # whose logits are held at once
_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 9))  # 1e-6 to 100 nats


@dataclass(frozen=True)
class Reading:
    """A model's final hidden states [B, T, D] for token ids [B, T] of a named text."""

    weights: Weights
    hidden: Tensor
    ids: Tensor
    set: str

    def logits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of one window: logits [n, V] float32 and the tokens [n] that really follow.

        Nothing follows the last position of a window: its token is -100.
        """
        weight, bias = head_of(self.weights)
        head = weight.to(self.hidden), bias
        for row, ids in zip(self.hidden, self.ids, strict=True):
            following = torch.cat([ids[1:], ids.new_tensor([-100])])
            for states, targets in zip(row.split(_TOKENS), following.split(_TOKENS), strict=True):
                yield logits(self.weights, states, head=head), targets


def perplexity(reading: Reading) -> Perplexity:
    """Exp of the mean loss over all but the first token of every window; windows do not overlap."""
    windows, seq_len = reading.ids.shape
    loss = sum(
        float(cross_entropy(scores, targets, reduction="sum", ignore_index=-100))
        for scores, targets in reading.logits()
    )
    tokens = windows * (seq_len - 1)
    if not loss < 700 * tokens:  # also NaN
        raise EvaluationError(f"{reading.set}: the model's loss is {loss / tokens}, not a number.")
    return Perplexity(
        math.exp(loss / tokens), reading.set, seq_len, seq_len, windows, tokens,
        fingerprint(reading.ids),
    )  # fmt: skip


def divergence(teacher: Reading, student: Reading) -> Divergence:
    """Per-token KL(teacher || student) in nats over the whole vocabulary, at every position."""
    pieces = [
        _compare(before, after)
        for (before, _), (after, _) in zip(teacher.logits(), student.logits(), strict=True)
    ]
    kl = torch.cat([kl for kl, _ in pieces]).double()
    same = torch.cat([same for _, same in pieces])
    if not torch.isfinite(kl).all():
        raise EvaluationError(f"{teacher.set}: the student's logits are not finite everywhere.")
    counts, _ = torch.histogram(kl.clamp(_EDGES[0], _EDGES[-1]), torch.tensor(_EDGES).double())
    ordered = kl.sort().values
    return Divergence(
        teacher.set, kl.numel(), float(kl.mean()), _quantile(ordered, 0.5),
        _quantile(ordered, 0.99), float(same.double().mean()), int((~same).sum()),
        _EDGES, tuple(int(count) for count in counts), fingerprint(teacher.ids),
        tuple(kl.view(len(teacher.ids), -1).mean(1).tolist()),
    )  # fmt: skip


def _quantile(ordered: Tensor, fraction: float) -> float:
    """Quantile of sorted values [n]; torch's own refuses more than 2²⁴ of them."""
    place = fraction * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return float(torch.lerp(low, high, place % 1))


def _compare(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """KL [n] and whether the likeliest token is the same [n], from logits [n, V]."""
    return kl(before, after), before.argmax(-1) == after.argmax(-1)

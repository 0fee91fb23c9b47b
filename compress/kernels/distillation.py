"""How far a student's next-token distributions are from its teacher's, with gradients, in pieces.

Logits of a whole batch, [N, V], are never held: a piece of them is made from final hidden states,
turned into its share of the loss and of the gradients, and let go. The gradients are made on the
way forward, when the piece is there; the way back only scales them.

Source: the loss of all kinds: Agarwal et al. 2024 (GKD), arXiv:2306.13649; gradients made with the
logits, piece by piece: Hsu et al. 2024 (Liger Kernel), arXiv:2410.10989; Wijmans et al. 2024,
arXiv:2411.09009.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Kind = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
UNLABELLED = -100  # a label of no token, as torch has it


@dataclass(frozen=True)
class Head:
    """What makes logits of final hidden states."""

    weight: Tensor  # [V, D], any float
    bias: Tensor | None = None  # [V]
    cap: float | None = None  # logits become cap · tanh(logits / cap)


@dataclass(frozen=True)
class States:
    """Final hidden states of a model, and its head."""

    hidden: Tensor  # [N, D], any float
    head: Head


@dataclass(frozen=True)
class Objective:
    """What is asked of a student: (1 - c) · T² · divergence + c · cross-entropy, nats per token."""

    kind: Kind = "forward_kl"
    temperature: float = 1.0  # T divides both models' logits, in the divergence alone
    beta: float = 0.5  # of jensen_shannon: the teacher's share of the mixture
    cross_entropy: float = 0.0  # c


def distillation(
    student: States,
    teacher: States,
    objective: Objective,
    *,
    labels: Tensor | None = None,
    counted: Tensor | None = None,
    weights: Tensor | None = None,
    dtype: torch.dtype | None = None,
    chunk_tokens: int = 128,
) -> Tensor:
    """The loss of a student's final hidden states, summed over V, a mean over tokens, in nats.

    Args:
        student: gradients reach its hidden states, and its head where that asks for them; the head
            may be an embedding, too.
        teacher: of the same N tokens and the same V; widths may differ.
        objective: what is asked for.
        labels: [N] int64, the token that really follows, or UNLABELLED; for cross-entropy.
        counted: [N] bool, False for padding; all tokens by default.
        weights: [N], from 0 on, how much each token counts in both means; alike by default.
        dtype: in which hidden states and heads are multiplied, that of the student's by default.
            What follows is float32, or float64 where that is.
        chunk_tokens: tokens whose logits are held at once; changes the order of sums only.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: the vocabularies differ, no token counts, or cross-entropy has no label.
    """
    _check(student.head, teacher.head, objective, labels)
    hidden, head = student.hidden, student.head
    if not torch.is_grad_enabled():  # which is always off within the function, asked or not
        hidden, head = hidden.detach(), _detached(head)
    dtype = dtype or hidden.dtype
    exact = torch.promote_types(dtype, torch.float32)
    every = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    work = _Work(
        teacher, objective, dtype, exact, chunk_tokens,
        _shares(every if counted is None else counted, weights, exact, "counted"),
        labels,
        None if labels is None else _shares(labels != UNLABELLED, weights, exact, "labelled"),
    )  # fmt: skip
    apply: Any = _Distillation.apply
    loss: Tensor = apply(hidden, head.weight, head.bias, head.cap, work)
    return loss


def _detached(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach()
    return Head(head.weight.detach(), bias, head.cap)


@dataclass(frozen=True)
class _Work:
    """All that a loss is made of beside the student's own tensors."""

    teacher: States
    objective: Objective
    dtype: torch.dtype  # of products
    exact: torch.dtype  # of all else
    chunk_tokens: int
    shares: Tensor  # [N], of each token in the mean of divergences
    labels: Tensor | None  # [N]
    label_shares: Tensor | None  # [N], of each token in the mean of cross-entropies


class _Distillation(torch.autograd.Function):
    """Loss and gradients together; only gradients are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cap: float | None,
        work: _Work,
    ) -> Tensor:
        """Sum over pieces of tokens what each adds to the loss and to whatever wants gradients."""
        sums = [
            torch.zeros_like(x, dtype=work.exact) if wanted and x is not None else None
            for x, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        loss = torch.zeros((), dtype=work.exact, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            own = _cast(Head(weight, bias, cap), work.dtype)
            theirs, said = _cast(work.teacher.head, work.dtype), work.teacher.hidden
            for first in range(0, len(hidden), work.chunk_tokens):
                rows = slice(first, first + work.chunk_tokens)
                given = hidden[rows].to(work.dtype)
                logits = _logits(given, own, work.exact)
                target = _logits(said[rows].to(work.dtype), theirs, work.exact)
                part, slope = _piece(logits, target, work, rows, graded=any(ctx.needs_input_grad))
                loss += part
                if slope is not None:
                    _add(sums, rows, _uncapped(slope, logits, cap), given, own.weight)
        ctx.save_for_backward(*sums)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what was kept."""
        sums = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if s is None else (s * above).to(dtype) for s, dtype in sums), None, None)


def _piece(
    logits: Tensor, target: Tensor, work: _Work, rows: slice, *, graded: bool
) -> tuple[Tensor, Tensor | None]:
    """What a piece adds to the loss, and its gradient [n, V] by the student's logits."""
    asked, share = work.objective, 1 - work.objective.cross_entropy
    losses, slope = _divergence(logits, target, asked, graded=graded)
    weights = work.shares[rows] * share
    loss = asked.temperature**2 * (losses * weights).sum()
    if slope is not None:  # logits were divided by T: T² / T is left
        slope *= asked.temperature * weights[:, None]
    if work.labels is not None and work.label_shares is not None and asked.cross_entropy:
        weights = work.label_shares[rows] * asked.cross_entropy
        log_q, right = logits.log_softmax(-1), work.labels[rows].clamp_min(0)[:, None]
        loss = loss - (log_q.gather(1, right)[:, 0] * weights).sum()
        if slope is not None:
            slope += log_q.exp_().mul_(weights[:, None])
            slope.scatter_add_(1, right, -weights[:, None])
    return loss, slope


def _divergence(
    logits: Tensor, target: Tensor, asked: Objective, *, graded: bool
) -> tuple[Tensor, Tensor | None]:
    """Of each token [n], and its gradient [n, V] by the student's logits over T."""
    log_q = _cooled(logits, asked.temperature).log_softmax(-1)
    log_p = _cooled(target, asked.temperature).log_softmax(-1)
    if asked.kind == "forward_kl":
        p = log_p.exp()
        losses = (log_p.sub_(log_q).mul_(p)).sum(-1)
        return losses, log_q.exp_().sub_(p) if graded else None
    if asked.kind == "reverse_kl":
        q, apart = log_q.exp(), log_q.sub_(log_p)
        losses = (q * apart).sum(-1)
        return losses, apart.sub_(losses[:, None]).mul_(q) if graded else None
    p, q = log_p.exp(), log_q.exp()
    # from logarithms: where both are so small that p and q are 0, so would their mixture be
    log_m = torch.logaddexp(log_p + math.log(asked.beta), log_q + math.log1p(-asked.beta))
    losses = (log_p.sub_(log_m).mul_(p)).sum(-1) * asked.beta
    apart = log_q.sub_(log_m).mul_(1 - asked.beta)
    inner = (q * apart).sum(-1)
    return losses + inner, apart.sub_(inner[:, None]).mul_(q) if graded else None


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature  # a copy of [n, V] less


def _add(
    sums: list[Tensor | None], rows: slice, slope: Tensor, given: Tensor, weight: Tensor
) -> None:
    """Add what a piece tells of hidden states, of the head's weight and of its bias."""
    narrow = slope.to(weight.dtype)
    by_hidden, by_weight, by_bias = sums
    if by_hidden is not None:
        by_hidden[rows] = (narrow @ weight).to(by_hidden.dtype)
    if by_weight is not None:
        by_weight += narrow.T @ given
    if by_bias is not None:
        by_bias += slope.sum(0)


def _logits(hidden: Tensor, head: Head, exact: torch.dtype) -> Tensor:
    """[n, V], multiplied in the dtype of both, the rest in `exact`."""
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias).to(exact)
    return logits if not head.cap else logits.div_(head.cap).tanh_().mul_(head.cap)


def _uncapped(slope: Tensor, logits: Tensor, cap: float | None) -> Tensor:
    """A gradient by logits as one by what they were before they were capped."""
    return slope if not cap else slope * (1 - (logits / cap).square_())


def _cast(head: Head, dtype: torch.dtype) -> Head:
    bias = None if head.bias is None else head.bias.to(dtype)
    return Head(head.weight.to(dtype), bias, head.cap)


def _shares(which: Tensor, weights: Tensor | None, dtype: torch.dtype, word: str) -> Tensor:
    """The share of each token in a mean over those that are counted: [N]."""
    found = which.to(dtype) if weights is None else which * weights.to(dtype)
    if not (total := float(found.sum())):
        raise ValueError(f"no token is {word}: there is no mean over none")
    return found / total


def _check(head: Head, teacher: Head, objective: Objective, labels: Tensor | None) -> None:
    if head.weight.shape[0] != teacher.weight.shape[0]:
        raise ValueError(
            f"the student says {head.weight.shape[0]:,} tokens and its teacher "
            f"{teacher.weight.shape[0]:,}: distributions are compared over one vocabulary"
        )
    if objective.temperature <= 0:
        raise ValueError(f"temperature {objective.temperature} divides logits: it is above 0")
    if objective.cross_entropy and labels is None:
        raise ValueError("cross_entropy needs labels")

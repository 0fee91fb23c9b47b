"""How much a model's output moves with a small change inside it: KL to second order, by sampling.

For logits z(δ), the mean KL(p(0) ‖ p(δ)) is ½ E (∂ log p(y) · δ)² to second order, y drawn from p.
Drawn once for every position of a window and summed over it, what positions do to each other is
included and what different y have in common averages out: one gradient tells of every δ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_TOKENS = 128  # whose probabilities are held at once


@dataclass(frozen=True)
class Head:
    """What makes logits of final hidden states: z = weight h + bias, softly capped maybe."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    cap: float | None = None

    def probabilities(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of hidden states [n, D]: p and p times the slope of the cap, [n, V] float32 both."""
        z = hidden.float() @ self.weight.float().T
        z = z if self.bias is None else z + self.bias.float()
        if not self.cap:
            p = z.softmax(-1)
            return p, p
        bent = torch.tanh(z / self.cap)
        p = (bent * self.cap).softmax(-1)
        return p, p * (1 - bent.square())


@dataclass(frozen=True)
class Draws:
    """Tokens drawn from what a model expects, and how their log-probability moves.

    Its gradient by the logits is `slope` at the token drawn, less `mean` everywhere.
    """

    tokens: Tensor  # [S, N] int64
    slope: Tensor  # [S, N] float32; 1 without a cap
    gradient: Tensor  # [S, N, D] float32, by the final hidden states


def draw(hidden: Tensor, head: Head, *, draws: int, generator: torch.Generator) -> Draws:
    """Draw tokens at every position and say how their log-probability moves with the hidden state.

    Args:
        hidden: [N, D] final hidden states, any float.
        head: of the model.
        draws: tokens for each position, S.
        generator: of the randomness.
    """
    head = replace(head, weight=head.weight.float())  # once, not for every few tokens
    weight = head.weight
    shape = (draws, len(hidden))
    found = Draws(
        torch.empty(shape, dtype=torch.int64, device=hidden.device),
        torch.ones(shape, device=hidden.device),
        torch.empty(*shape, hidden.shape[1], device=hidden.device),
    )  # made first: kept pieces between probabilities that come and go would tear the heap
    for start in range(0, len(hidden), _TOKENS):
        here = slice(start, start + _TOKENS)
        p, bent = head.probabilities(hidden[here])
        tokens = torch.multinomial(p, draws, replacement=True, generator=generator).T
        found.tokens[:, here] = tokens
        if head.cap:
            found.slope[:, here] = (bent / p.clamp_min(1e-30)).gather(1, tokens.T).T
        gradient = weight[tokens] * found.slope[:, here, None]
        found.gradient[:, here] = gradient.sub_(bent @ weight)
    return found


def moved_head(hidden: Tensor, head: Head, change: Tensor, drawn: Draws) -> Tensor:
    """How the log-probability of drawn tokens moves when the head's weight does: [S, N].

    Args:
        hidden: [N, D] final hidden states.
        head: of the model.
        change: of its weight, [V, D].
        drawn: what `draw` gave for them.
    """
    head = replace(head, weight=head.weight.float())
    moves = []
    columns = zip(
        hidden.split(_TOKENS), drawn.tokens.split(_TOKENS, 1), drawn.slope.split(_TOKENS, 1),
        strict=True,
    )  # fmt: skip
    for part, tokens, slope in columns:
        _, bent = head.probabilities(part)
        gained = change[tokens].float() * slope[..., None] - bent @ change.float()
        moves.append((gained * part.float()).sum(-1))
    return torch.cat(moves, 1)


def moved(inputs: Tensor, change: Tensor, gradient: Tensor) -> Tensor:
    """How the log-probability of drawn tokens moves when a linear's weight does, by window.

    Args:
        inputs: [B, T, I], of the linear.
        change: of its weight, [O, I].
        gradient: [S, B, T, O], of the summed log-probability by its outputs.

    Returns:
        [S, B] float32.
    """
    outputs = (inputs @ change.to(inputs).T).float()
    return torch.stack([(outputs * one.float()).sum((1, 2)) for one in gradient])


def left_out(inputs: Tensor, weight: Tensor, gradient: Tensor, *, unit: int = 1) -> Tensor:
    """How the log-probability of drawn tokens moves when a linear does without inputs, by window.

    Args:
        inputs: [B, T, I], of the linear.
        weight: its weight, [O, I].
        gradient: [S, B, T, O], of the summed log-probability by its outputs.
        unit: neighbouring inputs that go together: the channels of a group of heads.

    Returns:
        [S, B, I / unit] float32, each unit alone.
    """
    given, shape = inputs.float(), (len(inputs), -1, unit)
    moves = [-(given * (one.to(weight) @ weight).float()).sum(1) for one in gradient]
    return torch.stack([move.view(shape).sum(2) for move in moves])


def divergence(moves: Tensor, tokens: int) -> float:
    """Mean KL per token, nats, to second order, from moves [S, B] of windows of so many tokens."""
    return float(divergences(moves, tokens))


def divergences(moves: Tensor, tokens: int) -> Tensor:
    """The same of many changes at once, from moves [S, B, U] of windows: [U] float64."""
    return moves.double().square().flatten(0, 1).mean(0) / (2 * tokens)

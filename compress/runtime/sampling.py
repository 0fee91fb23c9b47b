"""From logits to the next token: pure functions on logits [V] or [B, V]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import RequestError

SMALLEST_TEMPERATURE = 1e-5  # below it the draw is the argmax in all but name


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token; the default is greedy.

    The steps, in order: repetition_penalty, temperature, top_k, top_p, min_p, one draw.
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int | None = None  # only the k likeliest tokens
    top_p: float | None = None  # only the fewest tokens that hold this probability
    min_p: float | None = None  # only tokens this probable relative to the likeliest
    repetition_penalty: float = 1.0  # 1: none
    seed: int | None = None  # None: another one each time

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            RequestError: names every value that is out of its range.
        """
        rules = (
            ("temperature", self.temperature >= 0 and math.isfinite(self.temperature), "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
        )
        wrong = [
            f"{name}: {getattr(self, name)} must be {rule}."
            for name, holds, rule in rules
            if not holds
        ]
        if wrong:
            raise RequestError("sampling: " + " ".join(wrong))

    def generator(self) -> torch.Generator:
        """The source of chance that `seed` asks for."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def choose(
    logits: Tensor,
    sampling: Sampling,
    *,
    generator: torch.Generator | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Choose one token for each row of logits.

    Args:
        logits: [V] or [B, V] float; read, never written.
        sampling: how.
        generator: source of chance; unused when greedy.
        seen: token ids so far, [n] or [B, n]; needed by the repetition penalty.

    Returns:
        Token ids, [] or [B] int64.
    """
    if sampling.repetition_penalty != 1.0 and seen is not None:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature < SMALLEST_TEMPERATURE:
        return logits.argmax(-1)
    logits = (
        logits - logits.amax(-1, keepdim=True)
    ) / sampling.temperature  # at most 0: cannot overflow
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[..., 0]


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely: logits divided by `penalty`, negative ones multiplied."""
    old = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(old < 0, old * penalty, old / penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest logits become -inf."""
    values, indices = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, indices, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities reach p; the others become -inf."""
    values, indices = logits.sort(dim=-1, descending=True)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what likelier tokens already hold
    before[..., 0] = 0.0
    return torch.full_like(logits, -torch.inf).scatter(
        -1, indices, values.masked_fill(before >= p, -torch.inf)
    )


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens less probable than p times the likeliest become -inf."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -torch.inf)

"""From logits to a distribution and from a distribution to a token: pure functions on one row.

    logits ─ logit_bias ─ repetition ─ frequency, presence ─ temperature ─ top_k ─ top_p ─ min_p ─▶
    probabilities ─ one uniform number ─▶ token

Rows are taken one by one: on a CPU a batch of rows of a whole vocabulary costs more, not less.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compress.errors import RequestError, RunError

SMALLEST_TEMPERATURE = 1e-5  # below it the draw is the argmax in all but name


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token; the default is greedy.

    OpenAI's and vLLM's definitions: presence and frequency count what was generated, repetition
    what was generated and what was in the prompt.
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int | None = None  # only the k likeliest tokens
    top_p: float | None = None  # only the fewest tokens that hold this probability
    min_p: float | None = None  # only tokens this probable relative to the likeliest
    repetition_penalty: float = 1.0  # 1: none
    seed: int | None = None  # None: another one each time
    presence_penalty: float = 0.0  # taken from the logit of every token that was generated
    frequency_penalty: float = 0.0  # and this, as often as it was
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token → added to its logit

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
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "in [-2, 2]"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "in [-2, 2]"),
        )
        wrong = [
            f"{name}: {getattr(self, name)} must be {rule}."
            for name, holds, rule in rules
            if not holds
        ]
        wrong += [
            f"logit_bias: {bias} of token {token} must be in [-100, 100]."
            for token, bias in self.logit_bias.items()
            if not -100 <= bias <= 100
        ]
        if wrong:
            raise RequestError("sampling: " + " ".join(wrong))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, no chance involved."""
        return self.temperature < SMALLEST_TEMPERATURE

    @property
    def penalizes(self) -> bool:
        """Whether tokens already seen change the logits."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    def source(self) -> random.Random:
        """The source of chance that `seed` asks for: the same numbers on every machine."""
        return random.Random(self.seed)

    def check(self, vocab_size: int) -> None:
        """Check what only a model can tell.

        Raises:
            RequestError: a biased token is not in its vocabulary.
        """
        strange = [token for token in self.logit_bias if not 0 <= token < vocab_size]
        if strange:
            raise RequestError(
                f"sampling: logit_bias: token {strange[0]} is not in the vocabulary, which is 0 to "
                f"{vocab_size - 1}. Leave it out."
            )


class Seen:
    """The tokens of one request as penalties count them."""

    def __init__(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> None:
        """Begin with a prompt and what was generated from it."""
        self.prompt = torch.tensor(sorted(set(prompt)), dtype=torch.int64)
        self._times = Counter(generated)

    def add(self, token: int) -> None:
        """Count one more generated token."""
        self._times[token] += 1

    @property
    def generated(self) -> tuple[Tensor, Tensor]:
        """Generated tokens [n] int64, each once, and how often each was, [n] float32."""
        tokens = torch.tensor(list(self._times), dtype=torch.int64)
        return tokens, torch.tensor(list(self._times.values()), dtype=torch.float32)


def distribution(logits: Tensor, sampling: Sampling, seen: Seen | None = None) -> Tensor:
    """How probable each token is as the next one; drawing and speculation both ask here.

    Args:
        logits: [V] float; read, never written.
        sampling: how; greedy is one on the likeliest token.
        seen: the request's tokens so far; needed by penalties only.

    Returns:
        Probabilities [V] float32.
    """
    logits = adjusted(logits, sampling, seen)
    if sampling.greedy:
        return torch.zeros_like(logits).index_fill_(-1, logits.argmax(-1), 1.0)
    logits = (logits - logits.amax()) / sampling.temperature  # at most 0: cannot overflow
    if sampling.top_k is None:
        return _filtered(logits, sampling).softmax(-1)
    values, indices = logits.topk(min(sampling.top_k, len(logits)))
    few = _filtered(values, sampling).softmax(-1)
    return torch.zeros_like(logits).scatter(-1, indices, few)


def _filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def adjusted(logits: Tensor, sampling: Sampling, seen: Seen | None = None) -> Tensor:
    """Logits [V] with what changes even the likeliest token: bias, then penalties."""
    if sampling.logit_bias:
        tokens = torch.tensor(list(sampling.logit_bias)).to(logits.device)
        biases = torch.tensor(list(sampling.logit_bias.values())).to(logits)
        logits = logits.index_add(-1, tokens, biases)
    if seen is None or not sampling.penalizes:
        return logits
    generated, times = (one.to(logits.device) for one in seen.generated)
    if sampling.repetition_penalty != 1:
        both = torch.cat([seen.prompt.to(logits.device), generated])
        logits = penalize_repetition(logits, both, sampling.repetition_penalty)
    taken = sampling.frequency_penalty * times + sampling.presence_penalty
    return logits.index_add(-1, generated, -taken.to(logits.dtype))


def draw(probabilities: Tensor, chance: float) -> int:
    """The token at which probabilities [V], summed up, pass `chance` in [0, 1) of their sum.

    Raises:
        RunError: they are not numbers, because the logits were not.
    """
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    total = float(sums[-1])
    if not total > 0:
        raise RunError("sampling: the logits are not numbers. Open the model in float32.")
    # The first sum above it, so never a token of probability 0.
    return int(torch.searchsorted(sums, min(chance * total, math.nextafter(total, 0)), right=True))


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely: logits divided by `penalty`, negative ones multiplied."""
    old = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(old < 0, old * penalty, old / penalty))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities reach p; the others become -inf.

    A token exactly as likely as the last one that is kept is kept too.
    """
    if p == 1:
        return logits
    rising = _rising(logits)
    held = rising.softmax(-1).cumsum(-1, dtype=torch.float64)  # by a token and all less likely ones
    dropped = (held <= 1 - p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(logits < rising.gather(-1, dropped), -torch.inf)


def _rising(logits: Tensor) -> Tensor:
    """Logits sorted; on a CPU by numpy, whose vectors take an eightieth of torch's time."""
    if logits.is_cpu:
        return torch.from_numpy(np.sort(logits.numpy()))
    return logits.sort(dim=-1).values


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens less probable than p times the likeliest become -inf."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -torch.inf)

"""What an engine is asked, and what it answers: plain records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from compress.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "error"]
MOST_LOGPROBS = 20
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
        """Raise RequestError for all values that are out of their ranges."""
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
            f"{name}: {getattr(self, name)} must be {rule}." for name, ok, rule in rules if not ok
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
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    def check(self, vocab_size: int) -> None:
        """Raise RequestError where a biased token is not in the vocabulary of a model."""
        strange = [token for token in self.logit_bias if not 0 <= token < vocab_size]
        if strange:
            raise RequestError(
                f"sampling: logit_bias: token {strange[0]} is not in the vocabulary, which is 0 to "
                f"{vocab_size - 1}. Leave it out."
            )


@dataclass(frozen=True)
class Request:
    """One prompt to be answered."""

    prompt: tuple[int, ...]  # token ids
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 128  # a full context ends earlier
    stop: tuple[str, ...] = ()  # texts that end the answer and are left out of it
    ignore_eos: bool = False  # go on past tokens that end an answer
    logprobs: int | None = None  # likeliest tokens told beside each; 0: the chosen one's only
    grammar: str | None = None  # a JSON schema that the answer keeps to, as text
    salt: str = ""  # requests share what they have in common only with those of the same salt

    def __post_init__(self) -> None:
        """Raise RequestError for the first value that is out of its range."""
        if not self.prompt:
            raise RequestError("prompt: empty. Give at least one token.")
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens: {self.max_new_tokens} must be 1 or more.")
        if not all(self.stop):
            raise RequestError(f"stop: {self.stop!r} must hold no empty text.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise RequestError(f"logprobs: {self.logprobs} must be 0 to {MOST_LOGPROBS}.")
        if self.grammar is not None and self.ignore_eos:
            raise RequestError(
                "grammar: an answer that follows a schema ends with it. Leave ignore_eos out."
            )


@dataclass(frozen=True)
class Logprob:
    """How likely a token was, and which would have been likelier or next."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()  # token and logprob, falling


@dataclass(frozen=True)
class Timings:
    """How long one request took: time waited, and time of the steps that it took part in."""

    prompt_tokens: int
    new_tokens: int
    cached_tokens: int  # of the prompt, found in pages of earlier requests
    queue_seconds: float  # from its submission to its first step
    ttft_seconds: float  # of the steps up to its first token
    decode_seconds: float  # of the steps behind

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of the prompt, cached ones too, over the time to the first token."""
        return self.prompt_tokens / self.ttft_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """All tokens but the first, over their time; None when there is no other."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else None


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer; the last says why and how fast it ended.

    The text may lag behind: what may yet become a stop text or a whole character is held back.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()  # one a token, where asked for
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    error: str | None = None  # why it ended, where finish_reason is "error"

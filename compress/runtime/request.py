"""What an engine is asked, and what it answers: plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from compress.errors import RequestError
from compress.runtime.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled", "error"]
MOST_LOGPROBS = 20


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
        """Check what can be checked without a model.

        Raises:
            RequestError: names the first value that is out of its range.
        """
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

    Each new token is in the piece of its step. The text may lag behind its tokens: what may yet
    become a stop string or a whole character is held back.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()  # one a token, where asked for
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    error: str | None = None  # why it ended, where finish_reason is "error"

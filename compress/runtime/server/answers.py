"""What a client is answered: pieces of an engine in OpenAI's shapes, whole or as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from compress.runtime.request import Logprob, Piece
from compress.runtime.stream import UNFINISHED

LEAST_LOGPROB = -9999.0  # JSON has no -inf; OpenAI says this

FinishReason = Literal["stop", "length"]


class CachedTokens(BaseModel):
    """Where tokens of prompts came from."""

    cached_tokens: int


class Usage(BaseModel):
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class Alternative(BaseModel):
    """A token that might have come; `bytes` is null for a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Alternative):
    """A token that came, and what might have come in its place."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """Logprobs as chat tells them."""

    content: list[TokenLogprob]


class CompletionLogprobs(BaseModel):
    """Logprobs as completions tell them: one list a kind, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation, or the next part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """The answer of `/v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Chat(BaseModel):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What is new in an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class DeltaChoice(BaseModel):
    """The next part of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(BaseModel):
    """An event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[DeltaChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["compress"]
    max_model_len: int


class Models(BaseModel):
    """The answer of `/v1/models`."""

    object: Literal["list"]
    data: list[Model]


class Tokenized(BaseModel):
    """The answer of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(BaseModel):
    """The answer of `/detokenize`."""

    prompt: str


@dataclass
class Choice:
    """One answer so far."""

    index: int
    prompt_tokens: int
    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    tokens: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    offset: int = 0  # characters of the tokens whose logprobs were told

    def add(self, piece: Piece) -> None:
        """Take what came."""
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.tokens += len(piece.tokens)
        if piece.timings is not None:
            self.cached_tokens = piece.timings.cached_tokens
        if piece.finish_reason in ("stop", "length"):
            self.finish_reason = piece.finish_reason


def usage(choices: Sequence[Choice], *, n: int) -> Usage:
    """What all choices took; the `n` of one prompt read it once."""
    prompt = sum(choice.prompt_tokens for choice in choices[::n])
    new = sum(choice.tokens for choice in choices)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=new,
        total_tokens=prompt + new,
        prompt_tokens_details=CachedTokens(
            cached_tokens=sum(choice.cached_tokens for choice in choices[::n])
        ),
    )


@dataclass(frozen=True)
class Header:
    """What every event and answer to one request says first."""

    id: str
    created: int
    model: str


@dataclass(frozen=True)
class ChatWriter:
    """Writes answers of `/v1/chat/completions`; `text_of` is the text of one token."""

    header: Header
    told: bool  # whether logprobs were asked for
    text_of: Callable[[int], str]

    def opening(self, choice: Choice) -> ChatChunk:
        """The event that says who speaks."""
        return self._event([self._part(choice, Delta(role="assistant", content=""), (), None)])

    def part(self, choice: Choice, piece: Piece) -> ChatChunk:
        """The event of a piece; of the last one when `choice` has ended with it."""
        delta = Delta(content=piece.text) if piece.text or not choice.finish_reason else Delta()
        return self._event([self._part(choice, delta, piece.logprobs, choice.finish_reason)])

    def closing(self) -> ChatChunk:
        """The event that tells usage alone."""
        return self._event([])

    def whole(self, choices: Sequence[Choice], used: Usage) -> Chat:
        """All answers at once."""
        return Chat(
            **vars(self.header),
            object="chat.completion",
            choices=[
                ChatChoice(
                    index=one.index,
                    message=AssistantMessage(role="assistant", content=one.text),
                    logprobs=self._logprobs(one.logprobs),
                    finish_reason=one.finish_reason or "stop",
                )
                for one in choices
            ],
            usage=used,
        )

    def _event(self, choices: list[DeltaChoice]) -> ChatChunk:
        return ChatChunk(**vars(self.header), object="chat.completion.chunk", choices=choices)

    def _part(
        self,
        choice: Choice,
        delta: Delta,
        logprobs: Sequence[Logprob],
        reason: FinishReason | None,
    ) -> DeltaChoice:
        told = self._logprobs(logprobs) if logprobs else None
        return DeltaChoice(index=choice.index, delta=delta, logprobs=told, finish_reason=reason)

    def _logprobs(self, found: Sequence[Logprob]) -> ChatLogprobs | None:
        if not self.told:
            return None
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    **self._named(one.token, one.logprob),
                    top_logprobs=[Alternative(**self._named(*other)) for other in one.likeliest],
                )
                for one in found
            ]
        )

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.text_of(token)
        whole = None if UNFINISHED in text else list(text.encode())
        return {"token": text, "logprob": _finite(logprob), "bytes": whole}


@dataclass(frozen=True)
class CompletionWriter:
    """Writes answers of `/v1/completions`; `text_of` is the text of one token."""

    header: Header
    told: bool
    text_of: Callable[[int], str]

    def opening(self, choice: Choice) -> None:
        """Nothing: a continuation has no speaker."""

    def part(self, choice: Choice, piece: Piece) -> Completion:
        """The event of a piece; of the last one when `choice` has ended with it."""
        told = self._logprobs(piece.logprobs, choice) if piece.logprobs else None
        return self._event([self._part(choice, piece.text, told)])

    def closing(self) -> Completion:
        """The event that tells usage alone."""
        return self._event([])

    def whole(self, choices: Sequence[Choice], used: Usage) -> Completion:
        """All continuations at once."""
        parts = [self._part(one, one.text, self._logprobs(one.logprobs, one)) for one in choices]
        answer = self._event(parts)
        answer.usage = used
        return answer

    def _event(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(**vars(self.header), object="text_completion", choices=choices)

    def _part(
        self, choice: Choice, text: str, logprobs: CompletionLogprobs | None
    ) -> CompletionChoice:
        return CompletionChoice(
            index=choice.index, text=text, logprobs=logprobs, finish_reason=choice.finish_reason
        )

    def _logprobs(self, found: Sequence[Logprob], choice: Choice) -> CompletionLogprobs | None:
        if not self.told:
            return None
        texts = [self.text_of(one.token) for one in found]
        offsets = [choice.offset + sum(map(len, texts[:place])) for place in range(len(texts))]
        choice.offset += sum(map(len, texts))
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[_finite(one.logprob) for one in found],
            top_logprobs=[
                {self.text_of(token): _finite(value) for token, value in one.likeliest}
                for one in found
            ],
            text_offset=offsets,
        )


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)

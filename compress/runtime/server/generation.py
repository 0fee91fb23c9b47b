"""From a client's request to the engine's requests, and from their pieces to an answer."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from pydantic import BaseModel

from compress.errors import RequestError
from compress.runtime.request import Piece, Request, Sampling
from compress.runtime.server.answers import ChatWriter, Choice, CompletionWriter, usage
from compress.runtime.server.loop import Answer, Engine
from compress.runtime.server.protocol import (
    MAX_CHOICES,
    ChatRequest,
    CompletionRequest,
    Message,
    StreamOptions,
)
from compress.runtime.server.refusals import Refusal

COMPLETION_TOKENS = 16  # of a completion that does not say; OpenAI's number
DONE = b"data: [DONE]\n\n"
_SEEDS = 2**63

Asked = ChatRequest | CompletionRequest
Writer = ChatWriter | CompletionWriter


def chat_tokens(engine: Engine, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where its answer begins.

    Raises:
        RequestError: the model has no chat template, or it refuses these messages.
    """
    said = [{"role": one.role, "content": one.text} for one in messages]
    ids: list[int] = engine.tokenizer.encode(engine.tokenizer.chat(said), special=False)
    return ids


def prompts(engine: Engine, body: Asked) -> list[list[int]]:
    """Token ids of every prompt of a request.

    Raises:
        RequestError: messages that the model has no form for.
    """
    if isinstance(body, ChatRequest):
        return [chat_tokens(engine, body.messages)]
    return [
        engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        for prompt in body.prompts
    ]


def requests(body: Asked, ids: Sequence[Sequence[int]], *, context: int) -> list[Request]:
    """What the engine is asked: `n` requests for each prompt, with seeds that follow each other.

    Raises:
        RequestError: too many answers, or a context that prompt and answer do not fit.
    """
    n = body.n or 1
    if n * len(ids) > MAX_CHOICES:
        raise RequestError(
            f"n: {n} answers to {len(ids)} prompts are {n * len(ids)}; {MAX_CHOICES} may be asked "
            "for at once. Send several requests."
        )
    return [
        Request(
            prompt=tuple(one),
            sampling=_sampling(body, place),
            max_new_tokens=_limit(body, len(one), context),
            stop=body.stops,
            ignore_eos=bool(body.ignore_eos),
            logprobs=body.alternatives,
            grammar=body.grammar,
            salt=body.cache_salt or "",
        )
        for one in ids
        for place in range(n)
    ]


async def collect(answer: Answer, choices: Sequence[Choice]) -> None:
    """Wait for all of an answer.

    Raises:
        Refusal: the engine has stopped.
    """
    try:
        async for index, piece in answer.pieces():
            choices[index].add(piece)
            if piece.finish_reason in ("error", "cancelled"):
                raise _broken(piece)
    finally:
        answer.close()


async def events(
    answer: Answer, choices: Sequence[Choice], writer: Writer, options: StreamOptions, *, n: int
) -> AsyncIterator[bytes]:
    """An answer, `n` choices for each prompt, as server-sent events, while it is computed."""
    told, always = options.include_usage, options.continuous_usage_stats
    ready = []  # events that have not been handed over: all that there are go in one write
    for choice in choices:
        if (opening := writer.opening(choice)) is not None:
            ready.append(_event(opening, choices[:0] if always else None, told=told))
    async for index, piece in answer.pieces():
        choice = choices[index]
        choice.add(piece)
        if piece.finish_reason in ("error", "cancelled"):
            yield b"".join(ready) + f"data: {_broken(piece).body.model_dump_json()}\n\n".encode()
            return
        if piece.text or piece.logprobs or piece.finish_reason:
            part = writer.part(choice, piece)
            ready.append(_event(part, [choice] if always else None, told=told))
        if ready and not answer.waiting:
            yield b"".join(ready)
            ready.clear()
    if told:
        ready.append(_event(writer.closing(), choices, told=told, n=n))
    yield b"".join([*ready, DONE])


@functools.lru_cache(maxsize=8)
def token_text(tokenizer: Any) -> Callable[[int], str]:
    """The text of single tokens, as they read behind another one."""
    anchor = tokenizer.encode("a", special=False)[-1:]
    known = len(tokenizer.decode(anchor))

    @functools.lru_cache(maxsize=65536)
    def text(token: int) -> str:
        return str(tokenizer.decode([*anchor, token])[known:])

    return text


def _sampling(body: Asked, place: int) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        seed=None if body.seed is None else (body.seed + place) % _SEEDS,
    )


def _limit(body: Asked, prompt: int, context: int) -> int:
    """How many tokens an answer may have.

    Raises:
        RequestError: the context does not hold the prompt, or not so many beside it.
    """
    room = context - prompt + 1  # the last token of an answer is never read
    if room < 1:
        raise RequestError(
            f"prompt: {prompt:,} tokens, the model reads at most {context:,}. Shorten it."
        )
    asked = body.limit
    if asked is None:
        return room if isinstance(body, ChatRequest) else min(room, COMPLETION_TOKENS)
    if asked > room:
        raise RequestError(
            f"max_tokens: {asked:,} behind a prompt of {prompt:,} tokens; the context holds "
            f"{context:,}. Ask for at most {room:,}, or shorten the prompt."
        )
    return asked


def _event(
    found: BaseModel, used: Sequence[Choice] | None, *, told: bool | None, n: int = 1
) -> bytes:
    """One event; `usage` is there, maybe null, when usage was asked for."""
    if told or used is not None:
        found.usage = usage(used, n=n) if used else None  # type: ignore[attr-defined]
    return f"data: {found.model_dump_json(exclude_unset=True)}\n\n".encode()


def _broken(piece: Piece) -> Refusal:
    return Refusal(500, piece.error or "server: the engine has stopped; the answer is not whole.")

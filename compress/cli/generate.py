"""The command that answers one prompt from an artifact: `generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.cli import console
from compress.cli.apply import Json, Threads
from compress.cli.serve import Artifact, Device, Draft, text_of
from compress.errors import RequestError, RunError

if TYPE_CHECKING:
    from compress.runtime.request import Piece, Timings


def generate(
    folder: Artifact,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="One user message, or with --raw plain text.")
    ],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="At most so many.")] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token each time.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Sample from the k likeliest.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample from the likeliest that hold p.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", help="Sample from those p times as likely as the likeliest."),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1: what was said is less likely.")
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option("--presence-penalty", help="Taken from what was written.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option("--frequency-penalty", help="Taken as often as it was written.")
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", metavar="TOKEN=BIAS", help="Added to a token's logit."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Make sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A text that ends the answer.")
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option("--json-schema", metavar="FILE", help="What the answer has to follow."),
    ] = None,
    draft: Draft = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the text as it stands, without the chat template."),
    ] = False,
    threads: Threads = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Answer one prompt, streamed as it comes.

    With --json the whole answer at its end, with how long it took.
    """
    with console.starting():
        from compress.runtime.engine import Engine
        from compress.runtime.request import Request, Sampling

    sampling = Sampling(
        temperature, top_k, top_p, min_p, repetition_penalty, seed, presence_penalty,
        frequency_penalty, _biases(logit_bias or ()),
    )  # fmt: skip
    grammar = None if json_schema is None else text_of(json_schema, "--json-schema")
    engine = Engine.open(folder, threads=threads, device=device, draft=draft)
    ids = engine.encode(engine.tokenizer.encode(prompt) if raw else prompt)
    request = Request(tuple(ids), sampling, max_new_tokens, tuple(stop or ()), grammar=grammar)
    pieces = engine.answer(request)
    if json:
        console.emit_json(_whole(pieces))
        return
    timings = _stream(pieces)
    if timings and sys.stderr.isatty():
        console.say(_speed(timings))


def _biases(told: Sequence[str]) -> dict[int, float]:
    """What is added to logits, by token.

    Raises:
        RequestError: one is not written TOKEN=BIAS.
    """
    biases = {}
    for one in told:
        token, _, bias = one.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError as error:
            raise RequestError(
                f"--logit-bias: {one!r} is not the number of a token, =, and what is added to its "
                "logit. Write it as 42=-1.5."
            ) from error
    return biases


def _whole(pieces: Iterator[Piece]) -> dict[str, Any]:
    """An answer and its speed, as plain facts by name.

    Raises:
        RunError: the answer cannot go on.
    """
    from compress.runtime.engine import collect

    found = collect(pieces)
    if found.error is not None:
        raise RunError(found.error)
    told = {"text": found.text, "finish_reason": found.finish_reason}
    if (timings := found.timings) is None:
        return told
    return {
        **told,
        "prompt_tokens": timings.prompt_tokens,
        "new_tokens": timings.new_tokens,
        "ttft_seconds": timings.ttft_seconds,
        "prefill_tokens_per_second": timings.prefill_tokens_per_second,
        "decode_tokens_per_second": timings.decode_tokens_per_second,
    }


def _stream(pieces: Iterator[Piece]) -> Timings | None:
    """Write pieces as they come, then end the line; returns how long it took.

    Raises:
        RunError: the answer cannot go on.
    """
    timings = None
    for piece in pieces:
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        timings = piece.timings
        if piece.error is not None:
            sys.stdout.write("\n")
            raise RunError(piece.error)
    sys.stdout.write("\n")
    return timings


def _speed(timings: Timings) -> str:
    decode = timings.decode_tokens_per_second
    rate = f", {decode:.0f} tokens/s" if decode else ""
    return f"{timings.new_tokens} tokens after {timings.ttft_seconds:.2f} s{rate}"

"""The commands that answer from an artifact: `generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.cli import console
from compress.cli.apply import Threads

if TYPE_CHECKING:
    from compress.runtime.request import Piece, Timings


def generate(
    folder: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A finished artifact, or a model folder.")
    ],
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
    seed: Annotated[int | None, typer.Option("--seed", help="Make sampling repeatable.")] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the text as it stands, without the chat template."),
    ] = False,
    threads: Threads = None,
) -> None:
    """Answer one prompt, streamed as it comes."""
    from compress.runtime.engine import Engine

    engine = Engine.open(folder, threads=threads)
    pieces = engine.generate(
        engine.tokenizer.encode(prompt) if raw else prompt,
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
    )  # fmt: skip
    timings = _stream(pieces)
    if timings and sys.stderr.isatty():
        console.say(_speed(timings))


def _stream(pieces: Iterator[Piece]) -> Timings | None:
    """Write pieces as they come, then end the line; returns how long it took."""
    timings = None
    for piece in pieces:
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        timings = piece.timings
    sys.stdout.write("\n")
    return timings


def _speed(timings: Timings) -> str:
    decode = timings.decode_tokens_per_second
    rate = f", {decode:.0f} tokens/s" if decode else ""
    return f"{timings.new_tokens} tokens after {timings.ttft_seconds:.2f} s{rate}"

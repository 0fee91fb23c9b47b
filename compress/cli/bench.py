"""The command that times an artifact: `bench`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.cli import console
from compress.cli.apply import Json, Threads
from compress.cli.serve import Artifact, Device, Draft, Dtype, KVCache
from compress.report import numbers

if TYPE_CHECKING:
    from compress.runtime.bench import Bench, Percentiles


def bench(
    folder: Artifact,
    draft: Draft = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Requests at once.")] = 1,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, help="Of a prompt, timed for prefill.")
    ] = 512,
    context_tokens: Annotated[
        int, typer.Option("--context-tokens", min=1, help="In front of an answer, for decode.")
    ] = 256,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=2, help="Of an answer.")] = 128,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Repetitions; the median counts.")] = 3,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    kv_cache: KVCache = "auto",
    json: Json = False,
) -> None:
    """Time an artifact: tokens a second, first token, gaps.

    And the share of what memory was seen to be read by. The engine alone is timed, without HTTP.
    """
    with console.starting():
        from compress.runtime.bench import measure
        from compress.runtime.engine import Engine

        engine = Engine.open(
            folder, threads=threads, dtype=dtype, kv_cache=kv_cache, max_running=max(batch, 1),
            speculate=draft is not None, draft=draft, device=device,
        )  # fmt: skip
    next(engine.generate([1], max_new_tokens=1))
    startup = time.time() - console.process_began()
    found = measure(
        engine, batch=batch, prompt_tokens=prompt_tokens, context_tokens=context_tokens,
        new_tokens=new_tokens, runs=runs,
    )  # fmt: skip
    if json:
        console.emit_json({**dataclasses.asdict(found), "startup_seconds": startup})
        return
    console.tell(headline(folder, found))
    console.show(console.fact_table(facts(found, startup)))


def headline(folder: Path, found: Bench) -> str:
    """What was timed, in one line."""
    many = f", {found.batch} requests at once" if found.batch > 1 else ""
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    where = threads if found.device == "cpu" else found.device
    return f"{folder}: {found.format}, {found.dtype}, {where}{many}"


def facts(found: Bench, startup_seconds: float) -> dict[str, str]:
    """The numbers, one line each."""
    behind = f"{found.new_tokens} tokens behind {found.context_tokens:,}"
    return {
        "decode": f"{found.decode_tokens_per_second:,.1f} tokens/s, {behind}",
        "between tokens": _gaps(found.itl_seconds),
        "prefill": f"{found.prefill_tokens_per_second:,.0f} tokens/s, {found.prompt_tokens:,} "
        f"tokens, {found.flops_per_second / 1e9:,.0f} GFLOP/s",
        "first token": f"{found.ttft_seconds * 1e3:,.1f} ms behind {found.prompt_tokens:,} tokens",
        "process start": f"{startup_seconds:.2f} s to the first token",
        "read": f"{numbers.size(round(found.read_bytes))} a step, "
        f"{found.bytes_per_second / 1e9:,.1f} of {found.roof_bytes_per_second / 1e9:,.1f} GB/s, "
        f"{found.roof_share:.1%} of the roof",
    }


def _gaps(found: Percentiles) -> str:
    told = (f"{name} {getattr(found, name.lower()) * 1e3:.2f} ms" for name in ("P50", "P95", "P99"))
    return ", ".join(told)

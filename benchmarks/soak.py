r"""Many clients of our server for minutes, and whether anything was wrong, lost or left behind.

    python benchmarks/soak.py --artifact DIR --minutes 10 --clients 16 --out soak.json

Each client asks, again and again, by chance: a request that is known; a new one, sampled; one that
it cancels in its middle; one that it leaves before it is answered. Lengths of prompts are drawn
evenly on a logarithmic scale, lengths of answers evenly. Known requests were each asked alone, of
the same server and in the same dtype, before the clients came, and are asked alone again behind
them: their answers have to be the same.
In float32 that is every token of greedy and of seeded ones. In bfloat16 products are summed in
another order at another number of rows, so greedy answers may part where two tokens are as likely,
up to `--tie` nats; what stands behind such a place is not compared, nor are seeded ones.

At the end no page may be in use, and memory must be what it was. Prints one line of JSON and a
Markdown table; the exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clients
import deeds
import httpx2
import measure
import servers
import summary
from clients import AnswerError, Prompts
from deeds import Known
from servers import Running, ServerError

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

MARKER = "<!-- soak.py: newest first -->"
ALTERNATIVES = 5  # tokens told beside the one that came
TIES = {"float32": 1e-3, "bfloat16": 0.5}  # nats
SETTLE_SECONDS = 60.0  # in which a server must have noticed that its clients are gone
WINDOW_SAMPLES = 60  # of memory, the first and the last of these are compared
MOST_GROWTH = 0.02
COUNTERS = {
    "queried_tokens": "vllm:prefix_cache_queries_total",
    "cached_tokens": "vllm:prefix_cache_hits_total",
    "kept_proposals": "vllm:spec_decode_num_accepted_tokens_total",
    "preemptions": "vllm:num_preemptions_total",
}
POOL = "vllm:cache_config_info"
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Many clients for minutes; what was wrong.")
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="a folder our runtime opens")
    add("--serve-args", default="", help="more arguments of `compress serve`, as one word")
    add("--minutes", type=float, default=10)
    add("--clients", type=int, default=16)
    add("--known", type=int, default=48, help="requests whose answers are known")
    add("--prompt-tokens", type=int, default=1024, help="of the longest prompt")
    add("--tokens", type=int, default=128, help="new tokens of the longest answer")
    add("--tie", type=float, help=f"nats between tokens as likely  [default: {TIES}]")
    add("--no-fill", action="store_true", help="a quick try: memory grows as pages are written")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=os.cpu_count())
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--out", type=Path, required=True, help="JSON file")
    add("--results", type=Path, help="Markdown file that gets the table: docs/results.md")
    given = parser.parse_args(argv)
    if given.tie is None:
        given.tie = TIES[given.dtype]
    return given


async def soak(running: Running, prompts: Prompts, given: argparse.Namespace) -> dict[str, Any]:
    """Everything, from an empty server to an empty server."""
    running.wait()
    url, seen = running.url, deeds.Seen()
    if not given.no_fill:
        await fill(url, prompts, given)
    known = deeds.comparable(await ask_alone(url, prompts, given), given.dtype)
    before = await clients.metrics(url)
    memory: list[int] = []
    watching = asyncio.create_task(_watch(running, memory))
    began = time.perf_counter()
    deadline = began + 60 * given.minutes
    async with asyncio.TaskGroup() as group:
        for number in range(given.clients):
            asker = deeds.Asker(prompts, given, f"client {number}")
            group.create_task(deeds.behave(url, asker, known, deadline, seen, given.tie))
    seconds = time.perf_counter() - began
    watching.cancel()
    left = await settle(url)
    after = await clients.metrics(url)
    for one in known:
        seen.compare(one, (await clients.ask_all(url, [one.body]))[0], given.tie)
    return {
        "seconds": seconds,
        "requests": seen.deeds.total(),
        "deeds": dict(seen.deeds),
        "tokens": seen.tokens,
        "compared": seen.compared,
        "wrong": seen.wrong,
        "parted": len(seen.parted),
        "parted_nats": max(seen.parted, default=0.0),
        "errors": seen.errors,
        **left,
        **growth(memory),
        **{
            name: clients.total(after, metric) - clients.total(before, metric)
            for name, metric in COUNTERS.items()
        },
    }


async def fill(url: str, prompts: Prompts, given: argparse.Namespace) -> None:
    """Have every page written once: the system gives memory only when it is written to."""
    pages, page_tokens = _pool(await clients.metrics(url))
    count = -(-pages * page_tokens // given.prompt_tokens)
    drawn = [prompts.draw(given.prompt_tokens, f"{given.seed} fill {i}") for i in range(count)]
    bodies = [{"prompt": prompt, "max_tokens": 1} for prompt in drawn]
    for begin in range(0, count, given.clients):
        await clients.ask_all(url, bodies[begin : begin + given.clients])


async def ask_alone(url: str, prompts: Prompts, given: argparse.Namespace) -> list[Known]:
    """Requests, and what each is answered while nothing else is asked."""
    asker, known = deeds.Asker(prompts, given, "known"), []
    for number in range(given.known):
        body = asker.body(seeded=number < deeds.SEEDED_SHARE * given.known)
        body["logprobs"] = ALTERNATIVES
        known.append(deeds.Known(body, (await clients.ask_all(url, [body]))[0]))
    return known


async def settle(url: str, seconds: float = SETTLE_SECONDS) -> dict[str, Any]:
    """What is still running, waiting and in use when nobody asks any more."""
    deadline = time.perf_counter() + seconds
    while True:
        samples = await clients.metrics(url)
        running, waiting, usage = (clients.total(samples, name) for name in GAUGES)
        if running + waiting + usage == 0 or time.perf_counter() > deadline:
            pages, _ = _pool(samples)
            return {"left_requests": int(running + waiting), "leaked_pages": round(usage * pages)}
        await asyncio.sleep(0.2)


def growth(memory: Sequence[int]) -> dict[str, Any]:
    """Medians of the first and the last minute, of samples a second apart, in bytes.

    Where less than four minutes were sampled, of the first and the last quarter.
    """
    window = max(1, min(WINDOW_SAMPLES, len(memory) // 4))
    first, last = statistics.median(memory[:window]), statistics.median(memory[-window:])
    return {"first_bytes": first, "last_bytes": last, "growth": last / first - 1}


def faults(result: Mapping[str, Any]) -> list[str]:
    """What should not be, in words."""
    found = {
        f"{len(result['wrong'])} wrong answers": result["wrong"],
        f"{len(result['errors'])} errors": result["errors"],
        f"{result['leaked_pages']} leaked pages": result["leaked_pages"],
        f"{result['left_requests']} requests that nobody asks for any more": result[
            "left_requests"
        ],
        f"memory grew by {result['growth']:.1%}": result["growth"] > MOST_GROWTH,
    }
    return [words for words, there in found.items() if there]


def page(result: Mapping[str, Any]) -> str:
    """One soak as a Markdown section with a table of one row."""
    head = [
        "minutes",
        "clients",
        "requests",
        "tokens heard",
        "compared",
        "wrong",
        "parted at a tie",
    ]
    head += ["cached", "left requests", "leaked pages", "MiB, first minute", "last", "growth"]
    deeds = ", ".join(f"{count:,} {deed}" for deed, count in sorted(result["deeds"].items()))
    parted = f"{result['parted']:,}"
    if result["parted"]:
        parted += f" (≤ {result['parted_nats']:.2f} nats)"
    row = [
        f"{result['seconds'] / 60:.1f}", f"{result['clients']}", f"{result['requests']:,}",
        f"{result['tokens']:,}", f"{result['compared']:,}", f"{len(result['wrong'])}", parted,
        f"{result['cached_tokens'] / max(1, result['queried_tokens']):.0%}",
        f"{result['left_requests']}", f"{result['leaked_pages']}",
        *(f"{result[name] / 2**20:,.0f}" for name in ("first_bytes", "last_bytes")),
        f"{result['growth']:+.1%}",
    ]  # fmt: skip
    verdict = "; ".join(faults(result)) or "nothing wrong"
    return "\n".join(
        [
            f"### {result['date']}, {result['commit']}: soak, {result['dtype']}",
            "",
            f"    {result['command']}",
            "",
            f"{result['hardware']}, {result['threads']} threads, {result['artifact']}: {verdict}. "
            f"Requests: {deeds}.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in (head, ["--:"] * len(head), row)),
            "",
        ]
    )


async def _watch(running: Running, memory: list[int]) -> None:
    while True:
        memory.append(running.resident_bytes())
        await asyncio.sleep(1)


def _pool(samples: Sequence[Sample]) -> tuple[int, int]:
    """Pages of keys and values, and tokens of each."""
    (labels,) = (sample.labels for sample in samples if sample.name == POOL)
    return int(labels["num_gpu_blocks"]), int(labels["block_size"])


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, and print what was found."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    out = given.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    server = servers.ours(
        given.artifact, threads=given.threads, running=given.clients, dtype=given.dtype,
        extra=shlex.split(given.serve_args),
    )  # fmt: skip
    try:
        prompts = Prompts(given.artifact)
        with servers.started(server, log) as running:
            found = asyncio.run(soak(running, prompts, given))
    except (ServerError, AnswerError, FileNotFoundError, httpx2.TransportError) as error:
        print(f"{error!r}; see {log}", file=sys.stderr)
        return 1
    facts = ("minutes", "clients", "known", "tie", "seed", "threads", "dtype")
    result = {
        "schema_version": summary.SCHEMA_VERSION,
        **measure.about("benchmarks/soak.py", argv),
        **{name: getattr(given, name) for name in facts},
        "artifact": given.artifact.resolve().name,
        "versions": dict(server.versions),
        **found,
    }
    summary.keep(result, page(result), out=out, results=given.results, marker=MARKER)
    print(json.dumps(result))
    return 1 if faults(result) else 0


if __name__ == "__main__":
    sys.exit(main())

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
import contextlib
import json
import math
import os
import random
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clients
import httpx
import measure
import servers
import summary
from clients import AnswerError, Heard, Prompts
from servers import Running, ServerError

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

MARKER = "<!-- soak.py: newest first -->"
DEEDS = {"known": 5, "new": 2, "cancel": 2, "leave": 2}  # how often, to each other
SEEDED_SHARE = 0.25  # of known requests
SALTED_SHARE = 0.3  # of known requests whose prompt may not be found in the cache
WHOLE_SHARE = 0.3  # of answers that are not streamed
LEAVE_SECONDS = 0.5  # at most, until a client leaves
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
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=os.cpu_count())
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--out", type=Path, required=True, help="JSON file")
    add("--results", type=Path, help="Markdown file that gets the table: docs/results.md")
    given = parser.parse_args(argv)
    if given.tie is None:
        given.tie = TIES[given.dtype]
    return given


@dataclass(frozen=True)
class Known:
    """A request, and its answer when nothing else was asked."""

    body: Mapping[str, Any]
    alone: Heard


@dataclass
class Seen:
    """What became of everything that was asked."""

    deeds: Counter[str] = field(default_factory=Counter)
    tokens: int = 0  # of answers that were heard to their end
    compared: int = 0
    parted: list[float] = field(default_factory=list)  # by so many nats, at a tie
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def compare(self, known: Known, heard: Heard, tie: float) -> None:
        """Hold an answer against the one that was given alone."""
        self.compared += 1
        if (nats := parting(known.alone, heard)) is None:
            return
        if known.body["temperature"] == 0 and nats <= tie:
            self.parted.append(nats)
        else:
            told = f"{nats:.3g} nats: {known.alone.text!r} alone, {heard.text!r} here"
            self.wrong.append(told)


class Asker:
    """Draws requests by chance."""

    def __init__(self, prompts: Prompts, given: argparse.Namespace, name: str) -> None:
        """Requests follow from the seed and `name`."""
        self.chance = random.Random(f"{given.seed} {name}")
        self._prompts, self._given = prompts, given

    def body(self, *, seeded: bool) -> dict[str, Any]:
        """A request for some tokens behind some words, greedy or with a seed."""
        drawn = {"temperature": 0.8, "top_p": 0.95, "seed": self.chance.getrandbits(32)}
        return {
            "prompt": self._prompts.draw(
                _between(self.chance, self._given.prompt_tokens), str(self.chance.random())
            ),
            "max_tokens": self.chance.randint(1, self._given.tokens),
            "ignore_eos": self.chance.random() < 0.5,
            **(drawn if seeded else {"temperature": 0}),
            **servers.COUNTED,
        }


def parting(alone: Heard, heard: Heard) -> float | None:
    """Where two answers part: how much likelier, in nats, alone the one's token was.

    Returns:
        None: they are the same. Infinity: the other's token was none of the likeliest alone.
    """
    if (alone.text, alone.tokens) == (heard.text, heard.tokens):
        return None
    pairs = zip(alone.tokens, heard.tokens, alone.likeliest, strict=False)
    for one, other, likeliest in pairs:
        if one != other:
            return abs(likeliest[one] - likeliest.get(other, -math.inf))
    return math.inf


async def soak(running: Running, prompts: Prompts, given: argparse.Namespace) -> dict[str, Any]:
    """Everything, from an empty server to an empty server."""
    running.wait()
    url, seen = running.url, Seen()
    await fill(url, prompts, given)
    known = comparable(await ask_alone(url, prompts, given), given.dtype)
    before = await clients.metrics(url)
    memory: list[int] = []
    watching = asyncio.create_task(_watch(running, memory))
    began = time.perf_counter()
    deadline = began + 60 * given.minutes
    async with asyncio.TaskGroup() as group:
        for number in range(given.clients):
            asker = Asker(prompts, given, f"client {number}")
            group.create_task(behave(url, asker, known, deadline, seen, given.tie))
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
    asker, known = Asker(prompts, given, "known"), []
    for number in range(given.known):
        body = asker.body(seeded=number < SEEDED_SHARE * given.known)
        body["logprobs"] = ALTERNATIVES
        known.append(Known(body, (await clients.ask_all(url, [body]))[0]))
    return known


def comparable(known: Sequence[Known], dtype: str) -> list[Known]:
    """Those whose answers are the same in company: in bfloat16 no seeded ones."""
    return [one for one in known if dtype == "float32" or one.body["temperature"] == 0]


async def behave(
    url: str, asker: Asker, known: Sequence[Known], deadline: float, seen: Seen, tie: float
) -> None:
    """Be one client until the deadline."""
    chance = asker.chance
    async with clients.client(url) as http:
        while time.perf_counter() < deadline:
            (deed,) = chance.choices(list(DEEDS), weights=list(DEEDS.values()))
            seen.deeds[deed] += 1
            try:
                if deed == "known":
                    await _known(http, asker, chance.choice(known), seen, tie)
                elif deed == "new":
                    seen.tokens += (await clients.ask(http, asker.body(seeded=True))).count
                elif deed == "cancel":
                    await _cancel(http, asker)
                else:
                    await _leave(http, asker)
            except (AnswerError, httpx.HTTPError) as error:
                seen.errors.append(f"{deed}: {error!r}")
                await asyncio.sleep(LEAVE_SECONDS)


async def _known(
    http: httpx.AsyncClient, asker: Asker, known: Known, seen: Seen, tie: float
) -> None:
    """Ask again what is known."""
    body, chance = dict(known.body), asker.chance
    if chance.random() < SALTED_SHARE:
        body["cache_salt"] = str(chance.random())
    if chance.random() < WHOLE_SHARE:
        body["stream"] = False
        del body["stream_options"]
    heard = await clients.ask(http, body)
    seen.tokens += heard.count
    seen.compare(known, heard, tie)


async def _cancel(http: httpx.AsyncClient, asker: Asker) -> None:
    """Close a stream in its middle."""
    body = {**asker.body(seeded=asker.chance.random() < SEEDED_SHARE), "stream": True}
    lines = asker.chance.randrange(2 * body["max_tokens"])  # every second one is empty
    async with http.stream("POST", clients.PATH, json=body) as response:
        async for _ in response.aiter_lines():
            if (lines := lines - 1) < 0:
                break


async def _leave(http: httpx.AsyncClient, asker: Asker) -> None:
    """Go away before an answer is there, or as it comes."""
    body = asker.body(seeded=False)
    if asker.chance.random() < WHOLE_SHARE:
        body["stream"] = False
        del body["stream_options"]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(asker.chance.uniform(0, LEAVE_SECONDS)):
            await clients.ask(http, body)


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


def _between(chance: random.Random, most: int) -> int:
    """A number from 1 to `most`, as often of each order of magnitude."""
    return min(most, int(math.exp(chance.uniform(0, math.log(most + 1)))))


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
    except (ServerError, AnswerError, FileNotFoundError, httpx.TransportError) as error:
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
    out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(page(result))
    print(json.dumps(result))
    if given.results:
        summary.insert(given.results, page(result), marker=MARKER)
    return 1 if faults(result) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Clients of a server: prompts of real words, what was heard and when, percentiles."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

PERCENTILES = (50, 95, 99)
LEAST_LETTERS = 3  # of a word
PATH = "/v1/completions"


class AnswerError(RuntimeError):
    """A server refused, or answered something else than it was asked for."""


@dataclass(frozen=True)
class Heard:
    """One answer.

    Attributes:
        asked: when it was asked for, by `time.perf_counter`.
        times: when more tokens were there, in order.
        counts: how many, from the first on, at each of these times.
        text: all of it.
        tokens: each token's text, where logprobs were asked for.
        likeliest: log probabilities of each token and of those that might have come instead.
        cached_tokens: of the prompt, where the server says so.
    """

    asked: float
    times: tuple[float, ...]
    counts: tuple[int, ...]
    text: str
    tokens: tuple[str, ...] = ()
    likeliest: tuple[Mapping[str, float], ...] = ()
    cached_tokens: int = 0

    @property
    def count(self) -> int:
        """Tokens in all."""
        return self.counts[-1] if self.counts else 0

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between what came and what came next; tokens that came together have one."""
        return [after - before for before, after in itertools.pairwise(self.times)]

    def count_at(self, moment: float) -> int:
        """Tokens that were there."""
        before = bisect.bisect_right(self.times, moment)
        return self.counts[before - 1] if before else 0


class Prompts:
    """Makes prompts of so many tokens out of English words drawn by chance."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the tokenizer.json by which tokens are counted.

        Raises:
            FileNotFoundError: it does not.
        """
        from tokenizers import Tokenizer

        definition = folder / "tokenizer.json"
        if not definition.is_file():
            raise FileNotFoundError(f"{definition}: missing; prompts are measured with it")
        self._tokenizer = Tokenizer.from_file(str(definition))

    def draw(self, tokens: int, seed: str) -> str:
        """Words of `tokens` tokens, the last word whole; another seed, another first word or so."""
        text = " ".join(random.Random(seed).choices(words(), k=tokens))
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return text[: (text + " ").index(" ", offsets[tokens - 1][1])]


@cache
def words() -> tuple[str, ...]:
    """The words of the help text that every CPython carries, each once."""
    from pydoc_data.topics import topics

    found = re.findall(rf"\b[a-z]{{{LEAST_LETTERS},}}\b", " ".join(topics.values()))
    return tuple(sorted(set(found)))


def client(url: str) -> httpx2.AsyncClient:
    """A client that opens as many connections as it is asked to, and waits as long as it takes."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(base_url=url, limits=limits, timeout=None, trust_env=False)


async def ask(http: httpx2.AsyncClient, body: Mapping[str, Any]) -> Heard:
    """Have one completion streamed, or with `"stream": False` told at once.

    Raises:
        AnswerError: the server refuses, or breaks the answer off.
    """
    asked, lines = time.perf_counter(), []
    async with http.stream("POST", PATH, json={"stream": True, **body}) as response:
        if response.status_code != httpx2.codes.OK:
            raise AnswerError(f"{response.status_code}: {(await response.aread()).decode()[:500]}")
        async for line in response.aiter_lines():
            lines.append((time.perf_counter(), line))
    return heard(asked, lines)  # read only now: nothing but the clock runs while it comes


async def ask_all(url: str, bodies: Sequence[Mapping[str, Any]]) -> list[Heard]:
    """Have completions streamed at once, each to a client of its own."""
    async with client(url) as http:
        return await asyncio.gather(*(ask(http, body) for body in bodies))


async def metrics(url: str) -> list[Sample]:
    """What a server counts, in Prometheus' terms; nothing where it tells nothing."""
    from prometheus_client.parser import text_string_to_metric_families

    async with client(url) as http:
        told = await http.get("/metrics")
    if told.status_code != httpx2.codes.OK:
        return []
    families = text_string_to_metric_families(told.text)
    return [sample for family in families for sample in family.samples]


def total(samples: Sequence[Sample], name: str) -> float:
    """The sum of all samples of one name; 0 where there is none."""
    return sum(float(sample.value) for sample in samples if sample.name == name)


def heard(asked: float, lines: Sequence[tuple[float, str]]) -> Heard:
    """What the lines of an answer said: server-sent events, or one object.

    How many tokens there are is what the server counts, in `usage` or, llama.cpp, in `timings`;
    where it does not, every event with text is one.

    Raises:
        AnswerError: it was broken off, or an error came.
    """
    times: list[float] = []
    counts: list[int] = []
    choices: list[Mapping[str, Any]] = []
    cached = 0
    for at, line in lines:
        if not (found := line.removeprefix("data: ")).startswith("{"):
            continue
        event = json.loads(found)
        if "error" in event:
            raise AnswerError(str(event["error"])[:500])
        new = event.get("choices", [])
        choices += new
        before = counts[-1] if counts else 0
        count = _counted(event, before + any(choice.get("text") for choice in new))
        if count > before:
            times.append(at)
            counts.append(count)
        details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") or cached
    if not any(choice.get("finish_reason") for choice in choices):
        raise AnswerError("broken off: it does not say why it ended")
    told = [choice["logprobs"] for choice in choices if choice.get("logprobs")]
    return Heard(
        asked,
        tuple(times),
        tuple(counts),
        "".join(choice.get("text") or "" for choice in choices),
        tuple(token for one in told for token in one["tokens"]),
        tuple(each for one in told for each in one["top_logprobs"]),
        cached,
    )


def _counted(event: Mapping[str, Any], otherwise: int) -> int:
    """Tokens of the answer so far."""
    told = (event.get("usage") or {}).get("completion_tokens")
    if told is None:
        told = (event.get("timings") or {}).get("predicted_n")
    return otherwise if told is None else told


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """The smallest values that at least so many of all do not exceed; None where there is none."""
    ordered = sorted(values)
    return {
        f"p{p}": ordered[-(-len(ordered) * p // 100) - 1] if ordered else None for p in PERCENTILES
    }


def figures(waves: Sequence[Sequence[Heard]], tokens: int) -> dict[str, Any]:
    """What the answers of one level tell.

    Decode is of the time in which all clients get tokens: from the last one's first token to the
    first one's last. A wave without such a time, where the first has all before the last has any,
    has none. "Overall" is of all the time from the first request to the last token.

    Raises:
        AnswerError: an answer is longer or shorter than was asked for.
    """
    every = [one for wave in waves for one in wave]
    for one in every:
        if one.count != tokens:
            raise AnswerError(f"an answer of {one.count} tokens; {tokens} were asked for")
    decode = [speed for wave in waves if (speed := together(wave)) is not None]
    itl = percentiles([gap for one in every for gap in one.gaps])
    return {
        "decode_tokens_per_second": statistics.median(decode) if decode else None,
        "overall_tokens_per_second": statistics.median(map(overall, waves)),
        "ttft_seconds": percentiles([one.ttft for one in every]),
        "itl_seconds": itl,
        "itl_p99_over_p50": itl["p99"] / itl["p50"] if itl["p50"] and itl["p99"] else None,
    }


def together(wave: Sequence[Heard]) -> float | None:
    """Tokens a second of all answers while all of them are being written; None: at no time."""
    began, ended = max(one.times[0] for one in wave), min(one.times[-1] for one in wave)
    if ended <= began:
        return None
    return sum(one.count_at(ended) - one.count_at(began) for one in wave) / (ended - began)


def overall(wave: Sequence[Heard]) -> float:
    """Tokens a second of all answers, their prompts' time included."""
    seconds = max(one.times[-1] for one in wave) - min(one.asked for one in wave)
    return sum(one.count for one in wave) / seconds

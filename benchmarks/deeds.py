"""What one client of a soak does, and how its answers are held against those given alone."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import clients
import httpx2
import servers
from clients import AnswerError, Heard, Prompts

DEEDS = {"known": 5, "new": 2, "cancel": 2, "leave": 2}  # how often, to each other
SEEDED_SHARE = 0.25  # of known requests
SALTED_SHARE = 0.3  # of known requests whose prompt may not be found in the cache
WHOLE_SHARE = 0.3  # of answers that are not streamed
LEAVE_SECONDS = 0.5  # at most, until a client leaves


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
        None: they are the same. Infinity: one of the two tokens was none of the likeliest alone.
    """
    if (alone.text, alone.tokens) == (heard.text, heard.tokens):
        return None
    pairs = zip(alone.tokens, heard.tokens, alone.likeliest, strict=False)
    for one, other, likeliest in pairs:
        if one != other:
            told = likeliest.get(one), likeliest.get(other)  # what a seed drew may be neither
            return math.inf if None in told else abs(likeliest[one] - likeliest[other])
    return math.inf


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
            except (AnswerError, httpx2.HTTPError) as error:
                seen.errors.append(f"{deed}: {error!r}")
                await asyncio.sleep(LEAVE_SECONDS)


async def _known(
    http: httpx2.AsyncClient, asker: Asker, known: Known, seen: Seen, tie: float
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


async def _cancel(http: httpx2.AsyncClient, asker: Asker) -> None:
    """Close a stream in its middle."""
    body = {**asker.body(seeded=asker.chance.random() < SEEDED_SHARE), "stream": True}
    lines = asker.chance.randrange(2 * body["max_tokens"])  # every second one is empty
    async with http.stream("POST", clients.PATH, json=body) as response:
        async for _ in response.aiter_lines():
            if (lines := lines - 1) < 0:
                break


async def _leave(http: httpx2.AsyncClient, asker: Asker) -> None:
    """Go away before an answer is there, or as it comes."""
    body = asker.body(seeded=False)
    if asker.chance.random() < WHOLE_SHARE:
        body["stream"] = False
        del body["stream_options"]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(asker.chance.uniform(0, LEAVE_SECONDS)):
            await clients.ask(http, body)


def _between(chance: random.Random, most: int) -> int:
    """A number from 1 to `most`, as often of each order of magnitude."""
    return min(most, int(math.exp(chance.uniform(0, math.log(most + 1)))))

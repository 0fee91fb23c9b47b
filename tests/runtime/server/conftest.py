"""An engine that answers by a script, and a real server in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvicorn

from compress.errors import RequestError
from compress.runtime.request import Logprob, Piece, Request, Timings
from compress.runtime.server.app import make_app
from compress.runtime.server.limits import Limits
from compress.runtime.server.loop import Loop
from compress.runtime.server.metrics import Metrics

CONTEXT = 64
VOCABULARY = 1000


class Letters:
    """A tokenizer whose tokens are characters."""

    has_chat = True

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [1] * special + [ord(one) % VOCABULARY for one in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(one) for one in ids if one > 2)

    def chat(self, messages: list[dict[str, Any]]) -> str:
        if messages[-1]["role"] != "user":
            raise RequestError("messages: the model's chat template refuses them (no question).")
        return "".join(f"{one['role'][0]}:{one['content']}\n" for one in messages)


class Schemas:
    """Reads no schema, and knows those that it was given."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.read: Callable[[], None] = lambda: None  # what reading takes

    def knows(self, schema: str) -> bool:
        return schema in self.known

    def matcher(self, schema: str) -> None:
        self.read()
        self.known.append(schema)


@dataclass
class Running:
    ticket: int
    request: Request
    done: int = 0


class Scripted:
    """Says `text`, a letter a step, to at most `max_running` requests at once."""

    def __init__(
        self, text: str = "Hello there, this is a script.", *, max_running: int = 2
    ) -> None:
        self.tokenizer, self.grammars = Letters(), Schemas()
        self.text, self.max_running = text, max_running
        self.seconds = 0.0  # that a step takes
        self.breaks = False  # the next step raises
        self.asked: list[Request] = []
        self.cancelled: list[int] = []
        self.running: list[Running] = []
        self.waiting: deque[Running] = deque()
        self.computed = self.tickets = 0
        self.width = 1  # letters a token
        self.context = CONTEXT

    def describe(self) -> SimpleNamespace:
        return SimpleNamespace(
            device="cpu", max_tokens=self.context, read_bytes=1000, kv_bytes=10.0, weights=2000
        )

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting)

    def submit(self, request: Request) -> int:
        if not 0 <= min(request.prompt) <= max(request.prompt) < VOCABULARY:
            raise RequestError(
                f"prompt: token id {max(request.prompt)}; the vocabulary is 0 to {VOCABULARY - 1}."
            )
        self.asked.append(request)
        self.tickets += 1
        self.waiting.append(Running(self.tickets, request))
        return self.tickets

    def cancel(self, ticket: int) -> None:
        self.cancelled.append(ticket)
        self.running = [one for one in self.running if one.ticket != ticket]
        self.waiting = deque(one for one in self.waiting if one.ticket != ticket)

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(
            running=len(self.running), waiting=len(self.waiting), used_pages=len(self.running),
            pages=4, prefix_queried_tokens=10, prefix_hit_tokens=5, preemptions=0, drafts=3,
            draft_tokens=9, kept_tokens=4, kept_at=(3, 1, 0), computed_tokens=self.computed,
        )  # fmt: skip

    def step(self) -> list[tuple[int, Piece]]:
        time.sleep(self.seconds)
        if self.breaks:
            raise ZeroDivisionError("a fault")
        while self.waiting and len(self.running) < self.max_running:
            self.running.append(self.waiting.popleft())
        found = [(one.ticket, self._piece(one)) for one in self.running]
        self.computed += len(found)
        self.running = [
            one
            for one, (_, piece) in zip(self.running, found, strict=True)
            if piece.finish_reason is None
        ]
        return found

    def _piece(self, one: Running) -> Piece:
        letter, request = self.text[one.done % len(self.text)], one.request
        one.done += 1
        logprobs: tuple[Logprob, ...] = ()
        if request.logprobs is not None:
            others = tuple((ord("a") + i, -1.0 - i) for i in range(request.logprobs))
            logprobs = (Logprob(ord(letter), -0.5, others),)
        ended = one.done == len(self.text) and not request.ignore_eos
        full = one.done == request.max_new_tokens
        timings = Timings(len(request.prompt), one.done, 1, 0.001, 0.002, 0.003)
        return Piece(
            letter * self.width, (ord(letter),), logprobs,
            "stop" if ended else "length" if full else None,
            timings if ended or full else None,
        )  # fmt: skip


@dataclass
class Served:
    url: str
    engine: Any
    loop: Loop
    server: uvicorn.Server

    def http(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=20, verify=False, **options)

    def until(self, holds: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait for something that another thread brings about."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.005)


@contextlib.contextmanager
def serve(
    engine: Any,
    *,
    opener: Callable[[], Any] | None = None,
    teacher: Any = None,
    max_queued: int = 2,
    ready: bool = True,
    **options: Any,
) -> Iterator[Served]:
    """Serve an engine under the name "tiny" on a free port."""
    metrics = Metrics()
    openers = {"tiny": opener or (lambda: engine)}
    if teacher is not None:
        openers["teacher"] = lambda: teacher
    loops = {
        name: Loop(
            opens, metrics=metrics.model(name), max_running=2, max_queued=max_queued,
            roof=lambda device: 1e9,
        )
        for name, opens in openers.items()
    }  # fmt: skip
    loop = loops["tiny"]
    listening = socket.create_server(("127.0.0.1", 0))
    app = make_app(loops, metrics, **options)
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}", engine, loop, server)
    try:
        served.until(lambda: server.started)
        if ready:
            served.until(lambda: all(one.state != "loading" for one in loops.values()))
        yield served
    finally:
        server.should_exit = True
        thread.join(timeout=15)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def script() -> type[Scripted]:
    """The engine that answers by a script."""
    return Scripted


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """`with serving(engine) as served:`, see `serve`."""
    return serve


@pytest.fixture(scope="module")
def scripted() -> Iterator[Served]:
    """A server that answers by a script, one for all tests of a file."""
    with serve(Scripted(), limits=Limits(body_bytes=100_000, body_seconds=0.5)) as served:
        yield served

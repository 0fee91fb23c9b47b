"""One engine in a thread of its own, and the queues between it and the HTTP loop.

The engine takes commands (submit, cancel) between two steps; what a step brings forth crosses to
the HTTP loop in one call. All counting is done there, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from compress.errors import CompressError, RequestError
from compress.runtime.bench import read_roof
from compress.runtime.request import Piece, Request
from compress.runtime.server.metrics import ModelMetrics, Times
from compress.runtime.server.summary import Facts

LOADING_RETRY_SECONDS = 2
MAX_RETRY_SECONDS = 60
CLOSE_SECONDS = 30.0
_log = logging.getLogger("compress")

State = Literal["loading", "ready", "failed", "closed"]
Command = Callable[[], None]


class Engine(Protocol):
    """What the loop needs of `compress.runtime.engine.Engine`."""

    tokenizer: Any

    @property
    def grammars(self) -> Any:
        """What reads schemas."""

    @property
    def idle(self) -> bool:
        """Nothing is running or waiting."""

    def submit(self, request: Request) -> int:
        """Take a request; its ticket."""

    def step(self) -> list[tuple[int, Piece]]:
        """What one more step brought forth."""

    def cancel(self, ticket: int) -> None:
        """Forget a request."""

    def describe(self) -> Any:
        """What runs here."""

    def status(self) -> Any:
        """Counts of what it does and did."""


class Unavailable(Exception):  # noqa: N818 - a state, said as one
    """No request can be taken now; when to ask again, where that can be said."""

    def __init__(self, message: str, reason: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.reason, self.retry_after_seconds = reason, retry_after_seconds


class Answer:
    """What comes back for one HTTP request: the pieces of all its choices, as they are computed."""

    def __init__(self, cancel: Callable[[Answer], None], choices: int, arrived: float) -> None:
        """Made by `Loop.ask`; `arrived` is when the HTTP request came, by `time.perf_counter`."""
        self._cancel = cancel
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.arrived = arrived
        self.open = choices  # that have not ended
        self.times = [Times() for _ in range(choices)]
        self.tickets: list[int] = []  # the engine's thread writes and reads them

    def put(self, choice: int, piece: Piece) -> None:
        """Hand over a piece."""
        self._queue.put_nowait((choice, piece))
        if piece.finish_reason is not None:
            self.open -= 1

    @property
    def waiting(self) -> bool:
        """Whether more pieces have come already."""
        return not self._queue.empty()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Which choice and what of it, until all have ended."""
        while self.open or not self._queue.empty():
            yield await self._queue.get()

    def close(self) -> None:
        """Stop the work that nobody waits for any more; nothing where all has ended."""
        if self.open:
            self._cancel(self)


class Loop:
    """Runs one engine; every method but `_run` and what it calls belongs to the HTTP loop."""

    def __init__(
        self,
        opener: Callable[[], Engine],
        *,
        metrics: ModelMetrics,
        max_running: int,
        max_queued: int,
        roof: Callable[[str], float] = read_roof,
    ) -> None:
        """Prepare to run an engine.

        Args:
            opener: opens it; called in its thread.
            metrics: what is counted of it.
            max_running: requests that it works on at once.
            max_queued: requests beyond those that may wait; one more is refused.
            roof: measures bytes a second that a device can read; called in its thread, when it has
                nothing to do for the first time behind an answer.
        """
        self._opener, self._roof, self.metrics = opener, roof, metrics
        self.watch: Callable[[State], None] = lambda state: None  # told of every new state
        self.most = max_running + max_queued
        self.state: State = "loading"
        self.error: BaseException | None = None
        self.context_tokens = 0  # that the model reads; known when it is ready
        self._engine: Engine
        self._open = 0  # choices that have not ended
        self._asking: set[asyncio.Future[None]] = set()  # requests that are being handed over
        self._answered = False  # anything, yet
        self._answers: dict[int, tuple[Answer, int]] = {}  # ticket → whose, which choice
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._http: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Begin to open the engine."""
        self._http = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End the thread after the step that is being made; what is unfinished is given up.

        A step that does not end within `CLOSE_SECONDS` ends with the process.
        """
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    @property
    def engine(self) -> Engine:
        """The engine, for what needs none of its steps (its tokenizer, its grammars).

        Raises:
            Unavailable: it is not ready.
        """
        if self.state == "loading":
            raise Unavailable("server: the model is loading.", "loading", LOADING_RETRY_SECONDS)
        if self.state != "ready":
            raise _stopped()
        return self._engine

    async def ask(self, requests: Sequence[Request], arrived: float) -> Answer:
        """Hand requests to the engine, one for each choice.

        Raises:
            Unavailable: it is not ready, or holds all the requests that it may.
            RequestError: the engine cannot serve one of them at all.
        """
        self._admit(len(requests))
        answer = Answer(self._give_up, len(requests), arrived)
        taken: asyncio.Future[None] = self._http.create_future()
        self._open += len(requests)
        self._asking.add(taken)
        self._inbox.put(lambda: self._submit(requests, answer, taken))
        try:
            await taken
        except CompressError:
            self.metrics.rejected("invalid")
            self._withdraw(answer)
            raise
        except (Unavailable, asyncio.CancelledError):
            answer.close()
            raise
        finally:
            self._asking.discard(taken)
        return answer

    def _admit(self, count: int) -> None:
        self.engine  # noqa: B018 - raises unless it is ready
        if count > self.most:
            raise RequestError(
                f"n: {count} answers; this server takes on {self.most} at most. Ask for fewer."
            )
        if self._open + count > self.most:
            self.metrics.rejected("queue_full")
            seconds = min(max(1, round(self.metrics.typical_seconds())), MAX_RETRY_SECONDS)
            raise Unavailable(
                f"server: {self._open} requests are running or waiting, {self.most} may. "
                f"Ask again in {seconds} s.",
                "queue_full",
                seconds,
            )

    def _give_up(self, answer: Answer) -> None:
        self.metrics.cancelled(answer.open)
        self._withdraw(answer)

    def _withdraw(self, answer: Answer) -> None:
        self._open -= answer.open
        answer.open = 0  # what still comes of it counts no more
        self._inbox.put(lambda: self._cancel(answer))

    def _stepped(
        self, seconds: float, status: Any, now: float, found: Sequence[tuple[Answer, int, Piece]]
    ) -> None:
        self.metrics.stepped(seconds, status)
        self._deliver(now, found)

    def _deliver(self, now: float, found: Sequence[tuple[Answer, int, Piece]]) -> None:
        for answer, choice, piece in found:
            if not answer.open:
                continue  # given up meanwhile
            self.metrics.observe(answer.times[choice], piece, arrived=answer.arrived, now=now)
            answer.put(choice, piece)
            if piece.finish_reason is not None:
                self._open -= 1

    def _set(self, state: State, error: BaseException | None = None) -> None:
        self.state, self.error = state, error
        if state == "failed":
            for taken in self._asking:
                _fail(taken, _stopped())
        self.watch(state)

    # The engine's thread.

    def _run(self) -> None:
        try:
            self._engine = self._opener()
            self._describe()
            self.metrics.look(self._engine.status())
            self._tell(self._set, "ready")
            while True:
                self._work()
        except _Stopped:
            self._tell(self._set, "closed")
        except BaseException as error:  # noqa: BLE001 - the one door through which a thread's
            # errors leave; what Rust code gives up with is no Exception
            if not isinstance(error, CompressError):
                _log.exception("the engine has stopped")
            self._end(error)

    def _describe(self) -> None:
        told = self._engine.describe()
        self.context_tokens = told.max_tokens
        self.metrics.facts = Facts(told.read_bytes, told.kv_bytes, told.weights)

    def _work(self) -> None:
        """Take the commands there are, waiting for one where nothing else is to do; then step."""
        while self._engine.idle or not self._inbox.empty():
            self._look_up()
            self._inbox.get()()
        began = time.perf_counter()
        found = self._engine.step()
        now = time.perf_counter()
        status = self._engine.status()
        parts = [(*self._answers[ticket], piece) for ticket, piece in found]
        for ticket, piece in found:
            if piece.finish_reason is not None:
                self._forget(ticket)
                self._answered = True
        self._tell(self._stepped, now - began, status, now, parts)

    def _look_up(self) -> None:
        """See how high the roof is, once something was answered and nothing is to do."""
        facts = self.metrics.facts
        if facts is None or facts.roof_bytes_per_second or not self._answered:
            return
        if self._inbox.empty():
            roof = self._roof(self._engine.describe().device)
            self.metrics.facts = replace(facts, roof_bytes_per_second=roof)

    def _submit(
        self, requests: Sequence[Request], answer: Answer, taken: asyncio.Future[None]
    ) -> None:
        try:
            for choice, request in enumerate(requests):
                ticket = self._engine.submit(request)
                answer.tickets.append(ticket)
                self._answers[ticket] = answer, choice
        except CompressError as error:
            self._tell(_fail, taken, error)
        else:
            self._tell(_succeed, taken)

    def _cancel(self, answer: Answer) -> None:
        for ticket in answer.tickets:
            if ticket in self._answers:
                self._engine.cancel(ticket)
                self._forget(ticket)
        self._tell(self.metrics.look, self._engine.status())

    def _forget(self, ticket: int) -> None:
        del self._answers[ticket]

    def _end(self, error: BaseException) -> None:
        """Tell everybody who waits that nothing more comes."""
        now = time.perf_counter()
        lost = [
            (answer, choice, Piece("", finish_reason="error"))
            for answer, choice in self._answers.values()
        ]
        self._tell(self._set, "failed", error)
        self._tell(self._deliver, now, lost)

    def _stop(self) -> None:
        raise _Stopped

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call something in the HTTP loop."""
        with contextlib.suppress(RuntimeError):  # it is closed: the server was told twice to end
            self._http.call_soon_threadsafe(call, *arguments)


class _Stopped(Exception):  # noqa: N818 - an order
    pass


def _succeed(taken: asyncio.Future[None]) -> None:
    if not taken.done():
        taken.set_result(None)


def _stopped() -> Unavailable:
    return Unavailable("server: the engine has stopped.", "failed", MAX_RETRY_SECONDS)


def _fail(taken: asyncio.Future[None], error: Exception) -> None:
    if not taken.done():
        taken.set_exception(error)

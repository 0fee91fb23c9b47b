"""The HTTP application: which path answers what. JSON and HTTP stay in this folder.

`ENDPOINTS` is the one list of what there is: routes and the OpenAPI document are made from it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from compress import __version__
from compress.errors import RequestError, shown
from compress.runtime.server import generation, openapi
from compress.runtime.server.answers import (
    Chat,
    ChatChunk,
    ChatWriter,
    Choice,
    Completion,
    CompletionWriter,
    Detokenized,
    Header,
    Model,
    Models,
    Tokenized,
    usage,
)
from compress.runtime.server.limits import Guard, Limits, read_body
from compress.runtime.server.loop import Answer, Engine, Loop, Unavailable
from compress.runtime.server.metrics import Metrics
from compress.runtime.server.openapi import EVENTS, JSON, Endpoint
from compress.runtime.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
    read,
)
from compress.runtime.server.refusals import Refusal, of_request
from compress.runtime.server.summary import Summaries

PAGE = Path(__file__).with_name("page") / "index.html"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
ASKING = (400, 404, 408, 413, 415, 503)  # how a request with a body may be refused
CLIENT_LEFT = 499  # nobody reads it; nginx' number

ENDPOINTS = (
    Endpoint("chat", "POST", "/v1/chat/completions", "Answer a conversation.",
             ChatRequest, Chat, ChatChunk, (*ASKING, 500)),
    Endpoint("completions", "POST", "/v1/completions", "Continue a text.",
             CompletionRequest, Completion, Completion, (*ASKING, 500)),
    Endpoint("models", "GET", "/v1/models", "What is served.", None, Models, refuses=(503,)),
    Endpoint("tokenize", "POST", "/tokenize", "Token ids of a text or a conversation.",
             TokenizeRequest, Tokenized, refuses=ASKING),
    Endpoint("detokenize", "POST", "/detokenize", "The text of token ids.",
             DetokenizeRequest, Detokenized, refuses=ASKING),
    Endpoint("health", "GET", "/health", "200 once all models are ready.", refuses=(503,)),
    Endpoint("prometheus", "GET", "/metrics", "Prometheus metrics, under vLLM's names."),
    Endpoint("percentiles", "GET", "/metrics.json", "Exact percentiles of the last values.",
             None, Summaries),
    Endpoint("document", "GET", "/openapi.json", "This document.", answers=JSON),
    Endpoint("page", "GET", "/", "A page to try it.", answers="text/html"),
)  # fmt: skip


def make_app(
    loops: Mapping[str, Loop],
    metrics: Metrics,
    *,
    keys: Sequence[str] = (),
    hosts: frozenset[str] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Starlette:
    """The application of a server.

    Args:
        loops: what is served by its name; the first answers who names none.
        metrics: of the same models.
        keys: any one opens it; none: no key is asked for.
        hosts: names under which it may be addressed; None: any.
        limits: what a client may take.
    """
    api = Api(loops, metrics, limits, locked=bool(keys))
    return Starlette(
        routes=[Route(one.path, getattr(api, one.name), methods=[one.method]) for one in ENDPOINTS],
        middleware=[Middleware(Guard, keys=keys, hosts=hosts, limits=limits)],
        exception_handlers={
            RequestError: lambda _, error: of_request(error).response(),
            Refusal: lambda _, error: error.response(),
            Unavailable: lambda _, error: _unavailable(error).response(),
            HTTPException: lambda _, error: _of_starlette(error).response(),
            Exception: lambda *_: Refusal(500, "server: a fault of its own.").response(),
        },
        lifespan=api.lifespan,
    )


class Api:
    """Answers every path."""

    def __init__(
        self, loops: Mapping[str, Loop], metrics: Metrics, limits: Limits, *, locked: bool
    ) -> None:
        """See `make_app`."""
        self._loops, self._metrics, self._limits = loops, metrics, limits
        self._document = openapi.document(ENDPOINTS, version=__version__, locked=locked)
        self._page = PAGE.read_text(encoding="utf-8")
        self._policy = _policy(self._page)
        self._began = int(time.time())
        self._reading = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Open the engines when the server starts, end them when it has drained."""
        for loop in self._loops.values():
            loop.start()
        yield
        for loop in self._loops.values():
            await loop.close()

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        return await self._generate(request, ChatRequest, ChatWriter, "chatcmpl")

    async def completions(self, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._generate(request, CompletionRequest, CompletionWriter, "cmpl")

    async def models(self, request: Request) -> Response:
        """`/v1/models`."""
        await self.health(request)
        found = [
            Model(
                id=name, object="model", created=self._began, owned_by="compress",
                max_model_len=loop.context_tokens,
            )
            for name, loop in self._loops.items()
        ]  # fmt: skip
        return _json(Models(object="list", data=found))

    async def tokenize(self, request: Request) -> Response:
        """`/tokenize`."""
        body = read(TokenizeRequest, await read_body(request, self._limits))
        _, loop = self._served(body.model)
        engine = loop.engine
        if body.prompt is None:
            ids = await run_in_threadpool(generation.chat_tokens, engine, body.messages or ())
        else:
            special = body.add_special_tokens is not False
            encode = functools.partial(engine.tokenizer.encode, special=special)
            ids = await run_in_threadpool(encode, body.prompt)
        return _json(Tokenized(count=len(ids), max_model_len=loop.context_tokens, tokens=ids))

    async def detokenize(self, request: Request) -> Response:
        """`/detokenize`."""
        body = read(DetokenizeRequest, await read_body(request, self._limits))
        _, loop = self._served(body.model)
        text = await run_in_threadpool(loop.engine.tokenizer.decode, body.tokens)
        return _json(Detokenized(prompt=text))

    async def health(self, request: Request) -> Response:
        """`/health`."""
        for loop in self._loops.values():
            loop.engine  # noqa: B018 - raises unless it is ready
        return Response("ok", media_type="text/plain")

    async def prometheus(self, request: Request) -> Response:
        """`/metrics`."""
        return Response(self._metrics.text(), media_type=PROMETHEUS)

    async def percentiles(self, request: Request) -> Response:
        """`/metrics.json`."""
        return _json(self._metrics.summary())

    async def document(self, request: Request) -> Response:
        """`/openapi.json`."""
        return JSONResponse(self._document)

    async def page(self, request: Request) -> Response:
        """The page at `/`."""
        return HTMLResponse(self._page, headers={"Content-Security-Policy": self._policy})

    def _served(self, name: str | None) -> tuple[str, Loop]:
        """A model by its name, the first one where none is given."""
        name = next(iter(self._loops)) if name is None else name
        if name not in self._loops:
            raise Refusal(
                404,
                f"model: {shown(name)} is not served here. Served: {', '.join(self._loops)}.",
                param="model",
                code="model_not_found",
            )
        return name, self._loops[name]

    async def _read_schema(self, engine: Engine, schema: str) -> None:
        """Read a schema while the engine goes on; RequestError where it cannot be followed."""
        if engine.grammars.knows(schema):
            return
        async with self._reading:  # so that slow ones take one thread, and leave the others
            if not engine.grammars.knows(schema):
                await run_in_threadpool(engine.grammars.matcher, schema)

    async def _generate(
        self,
        request: Request,
        kind: type[ChatRequest] | type[CompletionRequest],
        writes: type[ChatWriter] | type[CompletionWriter],
        prefix: str,
    ) -> Response:
        arrived = time.perf_counter()
        body = read(kind, await read_body(request, self._limits))
        name, loop = self._served(body.model)
        engine, n = loop.engine, body.n or 1
        ids = await run_in_threadpool(generation.prompts, engine, body)
        asked = generation.requests(body, ids, context=loop.context_tokens)
        if body.grammar is not None:
            await self._read_schema(engine, body.grammar)
        answer = await loop.ask(asked, arrived)
        loop.metrics.asked(n, body.limit, asked[0].max_new_tokens)
        choices = [Choice(place, len(one.prompt)) for place, one in enumerate(asked)]
        header = Header(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), name)
        text_of = generation.token_text(engine.tokenizer)
        writer = writes(header, body.alternatives is not None, text_of)
        if body.stream:
            options = body.stream_options or StreamOptions()
            return _Events(generation.events(answer, choices, writer, options, n=n), answer)
        work = generation.collect(answer, choices)
        if not await _attended(request.receive, work):
            return Response(status_code=CLIENT_LEFT)
        return _json(writer.whole(choices, usage(choices, n=n)))


def _policy(page: str) -> str:
    """What a browser may do for the page: run and draw what stands in it, and ask this server."""
    allowed = {}
    for tag in ("script", "style"):
        inside = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        allowed[tag] = f"{tag}-src 'sha256-{digest}'"
    return (
        f"default-src 'none'; {allowed['script']}; {allowed['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Events(StreamingResponse):
    """Server-sent events; however they end, nothing is computed for them any more."""

    def __init__(self, events: AsyncIterator[bytes], answer: Answer) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type=EVENTS, headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # a generator that is left in its middle would be closed some time later
            self._answer.close()


async def _attended(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Do some work for as long as the client is there; whether it was done."""
    doing, leaving = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return False
        doing.result()  # raises what it raised
        return True
    finally:
        doing.cancel()
        leaving.cancel()


async def _left(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type=JSON)


def _unavailable(error: Unavailable) -> Refusal:
    return Refusal(
        503, str(error), code=error.reason, retry_after_seconds=error.retry_after_seconds
    )


def _of_starlette(error: HTTPException) -> Refusal:
    """Paths and methods that there are not."""
    told = {404: "path: there is no such path here.", 405: "method: not for this path."}
    message = told.get(error.status_code, error.detail)
    return Refusal(error.status_code, message, headers=dict(error.headers or {}))

"""What any client may take of the server before anything is read of what it asks."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compress.runtime.server.refusals import Refusal

OPEN = frozenset({"/", "/health", "/metrics", "/metrics.json", "/openapi.json"})  # without a key


@dataclass(frozen=True)
class Limits:
    """Bounds on one connection."""

    body_bytes: int = 2 * 1024**2
    body_seconds: float = 30.0  # in which a body must have come
    send_seconds: float = 30.0  # in which a client must take what it is sent


class Guard:
    """Refuses who has no key or comes under a foreign name; gives up on who does not read."""

    def __init__(
        self, app: ASGIApp, *, keys: Iterable[str], hosts: frozenset[str] | None, limits: Limits
    ) -> None:
        """Guard an application.

        Args:
            app: what is guarded.
            keys: any one opens it; none: no key is asked for.
            hosts: names under which it may be addressed; None: any. A page of a stranger whose
                name was made to point here could otherwise ask this server through its reader.
            limits: how long a client may take.
        """
        self._app, self._hosts, self._limits = app, hosts, limits
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if refusal := self._foreign(headers) or self._locked(scope["path"], headers):
            return await refusal.response()(scope, receive, send)

        async def timed(message: Message) -> None:
            async with asyncio.timeout(self._limits.send_seconds):
                await send(message)

        try:
            await self._app(scope, receive, timed)
        except TimeoutError:  # who does not read is left; the server closes the connection
            return

    def _foreign(self, headers: Headers) -> Refusal | None:
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self._hosts is None or name in self._hosts:
            return None
        return Refusal(
            421,
            "Host: this server answers on loopback only, under its own names. Start it with "
            "--host to serve under others.",
            code="host_not_allowed",
        )

    def _locked(self, path: str, headers: Headers) -> Refusal | None:
        if not self._keys or path in OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        if scheme.lower() == "bearer" and any(known):
            return None
        return Refusal(
            401,
            "Authorization: no key, or a wrong one. Send the header Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request, which must be JSON.

    Raises:
        Refusal: 415 for another type, 413 for too many bytes, 408 for one that does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "Content-Type: must be application/json.")
    told = request.headers.get("content-length", "")
    body = bytearray()
    _check_size(int(told) if told.isdigit() else 0, limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                _check_size(len(body), limits)
    except TimeoutError:
        raise Refusal(
            408, f"body: it did not come within {limits.body_seconds:g} seconds."
        ) from None
    except ClientDisconnect:
        raise Refusal(400, "body: the client left.") from None
    return bytes(body)


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.body_bytes:
        raise Refusal(
            413,
            f"body: more than {limits.body_bytes:,} bytes. Send a shorter prompt.",
            headers={"Connection": "close"},
        )

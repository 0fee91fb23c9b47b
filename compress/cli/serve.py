"""The command that answers from an artifact over HTTP: `serve`."""

from __future__ import annotations

import gc
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compress.cli import console
from compress.cli.apply import Threads
from compress.errors import RequestError

if TYPE_CHECKING:
    import uvicorn

    from compress.runtime.engine import Engine
    from compress.runtime.server.loop import Loop, State

DRAIN_SECONDS = 30  # for answers that are on their way when the server is told to end
UNREAD_SECONDS = 30  # that what was sent may stay unread before the connection is closed
BACKLOG = 2048  # connections that the system holds before they are taken
TEACHER = "teacher"  # its name, beside a student
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})  # names of this machine alone

Artifact = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A finished artifact, or a model folder.")
]
Draft = Annotated[
    Path | None,
    typer.Option("--draft", help="A small artifact that proposes tokens; the text stays the same."),
]
Dtype = Annotated[
    Literal["bfloat16", "float32"],
    typer.Option("--dtype", help="Of the arithmetic; float32 expands every weight."),
]
KVCache = Annotated[
    Literal["auto", "int8"],
    typer.Option("--kv-cache", help="Keys and values: as the artifact says, or a byte each."),
]

Device = Annotated[
    Literal["cpu", "cuda"],
    typer.Option("--device", help="Where to compute; CUDA was not measured."),
]


def serve(
    folder: Artifact,
    draft: Draft = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="A model folder to serve beside it, as `teacher`."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="Ask for a key: any of this file, one a line."),
    ] = None,
    max_queued: Annotated[
        int, typer.Option("--max-queued", min=0, help="Requests that may wait; more are refused.")
    ] = 64,
    max_running: Annotated[
        int, typer.Option("--max-running", min=1, help="Requests that are answered at once.")
    ] = 32,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    kv_cache: KVCache = "auto",
    speculate: Annotated[
        bool, typer.Option(help="Propose tokens where that has paid; the text stays the same.")
    ] = True,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the model.  [default: the folder's]")
    ] = None,
) -> None:
    """Answer over HTTP as OpenAI's API does, until told to end.

    A page to try it is at /. The address is told on stderr once every model is ready.
    """
    named = name or folder.resolve().name or "model"
    if named == TEACHER and teacher is not None:
        raise RequestError(f"--name: {TEACHER} is the name of --teacher. Choose another.")
    keys = _keys(api_key_file) if api_key_file else ()
    private = frozenset({*LOOPBACK, host}) if host in LOOPBACK else None
    if private is None and not keys:
        console.say("Note: whoever reaches this address is answered. --api-key-file asks for keys.")
    with _listen(host, port) as listening:
        with console.starting():
            import torch
            import uvicorn

            from compress.artifact.manifest import refuse_changed
            from compress.runtime.engine import Engine, collect
            from compress.runtime.server.app import make_app
            from compress.runtime.server.loop import Loop
            from compress.runtime.server.metrics import Metrics

        # now: an engine that works turns torch's own number down meanwhile
        settled = threads or torch.get_num_threads()

        def opener(model: Path, draft: Path | None) -> Callable[[], Engine]:
            def opens() -> Engine:
                for one in (model, *([draft] if draft else [])):
                    refuse_changed(one)
                engine = Engine.open(
                    model, threads=settled, dtype=dtype, kv_cache=kv_cache,
                    max_running=max_running, draft=draft, speculate=speculate, device=device,
                )  # fmt: skip
                collect(engine.generate([0], max_new_tokens=2))  # its steps are compiled on use
                return engine

            return opens

        openers = {named: opener(folder, draft)}
        if teacher is not None:
            openers[TEACHER] = opener(teacher, None)
        metrics = Metrics()
        loops = {
            each: Loop(
                opens, metrics=metrics.model(each), max_running=max_running, max_queued=max_queued
            )
            for each, opens in openers.items()
        }
        config = uvicorn.Config(
            make_app(loops, metrics, keys=keys, hosts=private),
            log_level="warning", access_log=False, ws="none", server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=DRAIN_SECONDS,
        )  # fmt: skip
        _run(uvicorn.Server(config), listening, loops)


def _keys(path: Path) -> tuple[str, ...]:
    """The keys of a file: one a line, lines that begin with # left out.

    Raises:
        RequestError: it cannot be read, holds none, or one that no header can carry.
    """
    lines = text_of(path, "--api-key-file").splitlines()
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise RequestError(f"--api-key-file: {path} holds no key. Write one a line.")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise RequestError(
            f"--api-key-file: {path} holds a key with a space or a character that is not ASCII. "
            "Use letters, digits and signs."
        )
    return keys


def text_of(path: Path, option: str) -> str:
    """What a file of the user's holds.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{option}: {path} cannot be read ({error}).") from error


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; bound before anything slow, so that a mistake shows soon.

    Raises:
        RequestError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise RequestError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}). Choose others."
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is taken from it inherits that
        milliseconds = int(1000 * UNREAD_SECONDS)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listening


def _run(server: uvicorn.Server, listening: socket.socket, loops: dict[str, Loop]) -> None:
    """Serve until a signal comes or an engine fails; answers on their way are finished.

    Raises:
        CompressError: an engine could not be opened, or broke.
    """
    address, port = listening.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    def watch(state: State) -> None:
        if state == "failed":
            server.should_exit = True
        elif state == "ready" and all(loop.state == "ready" for loop in loops.values()):
            gc.freeze()  # see `console.starting`
            seconds = time.time() - console.process_began()
            console.say(f"Serving {' and '.join(loops)} at {url} (ready after {seconds:.1f} s).")

    for loop in loops.values():
        loop.watch = watch
    for which in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when all is done
        signal.signal(which, lambda *_: None)
    server.run(sockets=[listening])
    for loop in loops.values():
        if loop.error is not None:
            raise loop.error

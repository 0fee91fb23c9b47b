"""A process of its own for work on what strangers wrote, where no thread could be interrupted.

It takes one JSON request a line and answers with one a line. The system bounds it: an alarm whose
default action ends the process, and a limit on its address space. Nothing but requests is in it.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_MEMORY_BYTES = 1024**3


class Apart:
    """The process as others see it: begun when first asked, again after it was ended."""

    def __init__(self, module: str) -> None:
        """Have `module` run, whose main program is `serve`."""
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any], *, seconds: int) -> dict[str, str]:
        """The answer to a request, found within `seconds`.

        Raises:
            ValueError: it holds an error, or there is none: the process went beyond a bound.
        """
        line = json.dumps({**request, "seconds": seconds}) + "\n"
        with self._lock:
            process = self._process = self._process or _start(self._module)
            answer = _exchange(process, line)
            if not answer:
                self._process = None
                raise ValueError(_ended(process.wait(), seconds))
        found: dict[str, str] = json.loads(answer)
        if "error" in found:
            raise ValueError(found["error"])
        return found

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.communicate()
            self._process = None


def program(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs a module of ours in a process of its own, and its environment."""
    package = str(Path(__file__).resolve().parents[1])  # a checkout need not be installed
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: the working folder, which may be a stranger's, is no place to import from
    command = [sys.executable, "-P", "-m", module, *arguments]
    return command, {**os.environ, "PYTHONPATH": paths}


def serve(answer: Callable[[dict[str, Any]], dict[str, str]]) -> None:
    """Answer, in the process, until the other side has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(request["seconds"])
        found = json.dumps(answer(request))
        signal.alarm(0)
        sys.stdout.write(found + "\n")
        sys.stdout.flush()


def _start(module: str) -> subprocess.Popen[str]:
    command, environment = program(module)
    return subprocess.Popen(
        command, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii",
    )  # fmt: skip


def _exchange(process: subprocess.Popen[str], line: str) -> str:
    """One request and its answer; '' when the process has ended."""
    if process.stdin is None or process.stdout is None:
        return ""
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _ended(code: int, seconds: int) -> str:
    if code == -signal.SIGALRM:
        return f"it did not end within {seconds} seconds"
    return f"the process that worked on it ended with {code}"

"""Messages and a chat template → the text a model is given."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_TEMPLATE_BYTES = 1024**2
MAX_SECONDS = 10


def check(template: str) -> None:
    """Check that a template is one, without running any of it.

    Raises:
        ValueError: it is not, or is unreasonably long.
    """
    import jinja2

    from compress.chat.environment import environment

    if len(template) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"{len(template):,} characters; {MAX_TEMPLATE_BYTES:,} are allowed")
    try:
        environment().parse(template)
    except jinja2.TemplateError as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    answering: bool,
    special: Mapping[str, Any],
) -> str:
    """Render a conversation, within the bounds of `chat.worker`.

    Args:
        template: as `check` accepts it.
        messages: plain values; of "role" and "content", oldest first.
        answering: end with the beginning of the assistant's turn.
        special: special tokens by the names that templates use (bos_token, …).

    Raises:
        ValueError: the template refuses the messages, fails, or goes beyond a bound.
    """
    said = [{k: v for k, v in message.items() if v is not None} for message in messages]
    values = {
        "messages": said, "tools": None, "documents": None, "add_generation_prompt": answering,
        **special,
    }  # fmt: skip
    answer = _worker.ask({"template": template, "values": values, "seconds": MAX_SECONDS})
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["text"]


class _Worker:
    """The rendering process: begun when first asked, again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        line = json.dumps(request) + "\n"
        with self._lock:
            process = self._process = self._process or _start()
            answer = _exchange(process, line)
            if not answer:
                self._process = None
                raise ValueError(_ended(process.wait()))
        found: dict[str, str] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    package = str(Path(__file__).resolve().parents[2])  # a checkout need not be installed
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: the working folder, which may be a stranger's, is no place to import from
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "compress.chat.worker"],
        env={**os.environ, "PYTHONPATH": paths},
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


def _ended(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"it did not end within {MAX_SECONDS} seconds"
    return f"the process that rendered it ended with {code}"


_worker = _Worker()
atexit.register(_worker.close)

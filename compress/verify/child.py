"""Run a consumer's script in a process of its own: it may crash, hang, or live elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b: .+")
_ELSEWHERE = ("See root cause above", "See stack trace for root cause")  # said by vLLM's parents
_NO_KERNEL = re.compile(r"\w+ cannot implement due to: .+")
_LAUNCHER = re.compile(  # which process of how many this is: a consumer is alone
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC|ACCELERATE|OMPI|PMI|MV2)_\w+"
)
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class ChildFailed(Exception):  # noqa: N818 - what it says is put into a result
    """A consumer gave no answer; the message says why."""


def run_child(
    python: str, script: Path, request: Mapping[str, Any], *, timeout_seconds: float
) -> dict[str, Any]:
    """Run ``python script REQUEST ANSWER``, both JSON files, and return the answer.

    Args:
        python: interpreter of the environment that has the consumer.
        script: imports nothing of compress.
        request: plain data.
        timeout_seconds: after which it is killed, with the processes it started.

    Raises:
        ChildFailed: it could not be started, failed, or took too long.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer, log = (Path(scratch) / name for name in ("request", "answer", "log"))
        asked.write_text(json.dumps(request), encoding="utf-8")
        # -P: the script's folder is no place to import from
        command = [python, "-P", str(script), str(asked), str(answer)]
        code = _wait(command, log, timeout_seconds)
        if code is None:
            raise ChildFailed(f"no answer within {timeout_seconds:.0f} s")
        if code != 0 or not answer.is_file():
            raise ChildFailed(_reason(log.read_text(encoding="utf-8", errors="replace"), code))
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def _wait(command: list[str], log: Path, timeout_seconds: float) -> int | None:
    """Exit code of a command; None when it had to be stopped. Nothing of it is left running."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not _LAUNCHER.fullmatch(name)
    }
    environment = kept | _QUIET
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ChildFailed(f"{command[0]}: cannot be run ({error.strerror})") from error
    try:
        return process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(log: str, code: int) -> str:
    """The line of a log that says best why a process failed."""
    told = [found[0] for line in log.splitlines() if (found := _ERROR.search(line))]
    causes = [line for line in told if not any(words in line for words in _ELSEWHERE)]
    if causes:
        return " ".join([causes[-1].strip(), "; ".join(_NO_KERNEL.findall(log))]).strip()[:800]
    last = (log.strip().splitlines() or ["it said nothing"])[-1]
    return f"{'killed by signal' if code < 0 else 'exit code'} {abs(code)}: {last[:500]}"

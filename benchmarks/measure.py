"""Run a command as a child, and say what it printed, how long it took and how much memory it held.

This module and the drivers that use it stay light on purpose: on Linux a child inherits its
parent's `ru_maxrss` over fork, so a driver that had imported torch would report its own peak as
everybody's.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SAMPLE_SECONDS = 0.1
ROOT = Path(__file__).resolve().parent.parent


class ChildError(RuntimeError):
    """A child ended with an error, or without the JSON line that it owes."""


@dataclass(frozen=True)
class Memory:
    """Peaks of one child, its own children included.

    `peak_memory_bytes` is the kernel's own high-water mark of resident memory (`ru_maxrss`), which
    misses nothing but takes the largest single process; `sampled_bytes` adds up the whole process
    tree ten times a second; `anonymous_bytes` is the same sum without pages mapped from files,
    which the system can drop and read again.
    """

    peak_memory_bytes: int
    sampled_bytes: int
    anonymous_bytes: int


@dataclass(frozen=True)
class Finished:
    """What a child left: the JSON object on its last line, its wall time and its memory."""

    output: dict[str, Any]
    wall_seconds: float
    memory: Memory


def run(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Finished:
    """Run one command to its end, sampling the memory of its process tree.

    Args:
        command: program and arguments.
        env: variables set on top of the present environment.
        cwd: folder to run in; some peers leave log folders behind.
        log: file that takes stdout and stderr, each run appended.

    Raises:
        ChildError: the command failed or its last line was not a JSON object.
    """
    with log.open("ab") as sink:
        begin = sink.tell()
        start = time.perf_counter()
        child = subprocess.Popen(
            command, env={**os.environ, **env}, cwd=cwd, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            memory = _watch(child)
        finally:
            if child.returncode is None:
                child.kill()
        seconds = time.perf_counter() - start
    printed = log.read_bytes()[begin:].decode(errors="replace")
    if child.returncode != 0:
        tail = "\n".join(printed.splitlines()[-15:])
        name = Path(command[1]).name
        raise ChildError(f"{name}: exit code {child.returncode}, see {log}\n{tail}")
    return Finished(output=_last_json(printed, log), wall_seconds=seconds, memory=memory)


def about(script: str, argv: Sequence[str], *, written: str = "") -> dict[str, str]:
    """Date, commit, hardware and command: what stands beside every number.

    `written` is a folder that the script itself writes: its changes are no changes of the code.
    """
    # Of a path that exists on this machine only, the last two names are all that others can use.
    words = ["/".join(Path(word).parts[-2:]) if Path(word).is_absolute() else word for word in argv]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(written),
        "hardware": hardware(),
        "command": f"python {script} {shlex.join(words)}",
    }


def hardware() -> str:
    """One line: processor, cores this process may use, memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def commit(apart_from: str = "") -> str:
    """Short hash of the checkout, with `+changes` when tracked files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    head = git("rev-parse", "--short", "HEAD") or "no commit"
    paths = ["--", ".", f":(exclude){apart_from}"] if apart_from else []
    differ = git("status", "--porcelain", "--untracked-files=no", *paths)
    return head + ("+changes" if differ else "")


def _watch(child: subprocess.Popen[bytes]) -> Memory:
    resident = anonymous = 0
    process = psutil.Process(child.pid)
    while True:
        # wait4, not wait: its usage is this child's alone, not that of all children so far.
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            unit = 1 if platform.system() == "Darwin" else 1024
            return Memory(usage.ru_maxrss * unit, resident, anonymous)
        held, private = resident_bytes(process)
        resident, anonymous = max(resident, held), max(anonymous, private)
        time.sleep(SAMPLE_SECONDS)


def resident_bytes(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes of a process tree, and those of them that no file backs."""
    held = private = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    for member in tree:
        try:
            info = member.memory_info()
        except psutil.NoSuchProcess:
            continue
        held += info.rss
        private += info.rss - getattr(info, "shared", 0)
    return held, private


def _last_json(printed: str, log: Path) -> dict[str, Any]:
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    try:
        value = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ChildError(f"{log}: no JSON object at the end; a runner prints one as its last line")
    return value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

"""One recipe carried out by the command line, in a process of its own; what it left, read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure


@dataclass(frozen=True)
class Left:
    """The two records of a finished run: `results.json` and `measured.json`."""

    results: dict[str, Any]
    measured: dict[str, Any]


def run(
    recipe: str, out: Path, *, sets: Sequence[str] = (), threads: int, nproc: int = 1,
    cache: Path | None = None,
) -> Left:  # fmt: skip
    """Apply a recipe, unless `out` is there already; then what it holds is read.

    Args:
        recipe: a shipped name or a path.
        out: the artifact's folder; beside it lies the log, under its name with `.log`.
        sets: arguments of `--set`.
        threads: processor threads.
        nproc: processes that share them.
        cache: where downloads and what the teacher says are kept; the user's own by default.

    Raises:
        measure.ChildError: the run failed.
    """
    if not out.is_dir():
        log = out.with_name(out.name + ".log")
        command = [sys.executable, "-m", "compress", "apply", recipe, "--out", str(out)]
        command += [f"--set={one}" for one in sets] + ["--threads", str(threads)]
        command += ["--nproc", str(nproc)] if nproc > 1 else []
        env = {"PYTHONPATH": str(measure.ROOT), "OMP_NUM_THREADS": str(threads)}
        env |= {"COMPRESS_CACHE": str(cache)} if cache else {}
        with log.open("ab") as sink:
            done = subprocess.run(
                command, env={**os.environ, **env}, stdout=sink, stderr=subprocess.STDOUT
            )
        if done.returncode:
            raise measure.ChildError(f"{recipe}: exit code {done.returncode}, see {log}")
    results, measured = (
        json.loads((out / name).read_text("utf-8")) for name in ("results.json", "measured.json")
    )
    return Left(results, measured)

"""How long a run will take on this machine: told by runs that have finished here, or not at all.

Each step's work is counted in operations (`plan.work`); its pace is the median of the past runs in
which it had about as much to do. Steps whose work is not counted are taken to last as long as they
did. The newest few of every size are kept: tiny runs push out no real one.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compress import storage
from compress.errors import StorageError
from compress.plan.footprint import Job
from compress.plan.work import work

log = logging.getLogger("compress")
FILE = "pace.json"
_KEPT = 5  # runs of one kind and size; older ones are forgotten
_AS_NEAR = 2.0  # times as much work, beside the nearest run
_TOO_SHORT = 1.0  # seconds; such a step found its result in a cache


@dataclass(frozen=True)
class Run:
    """One finished run: how much there was to do, and how long each step took."""

    processor: str
    device: str
    threads: int
    date: str
    work: Mapping[str, float]  # operations by step
    seconds: Mapping[str, float]

    @property
    def kind(self) -> tuple[str, str, int, int]:
        """What runs must share to be told apart only by their date."""
        return self.processor, self.device, self.threads, size_class(self.work)


@dataclass(frozen=True)
class Estimate:
    """How long a run will take; None where nothing here tells."""

    seconds: float | None
    steps: Mapping[str, float]
    note: str


def remember(
    folder: Path, job: Job, seconds: Mapping[str, float], *, device: str, threads: int
) -> None:
    """Note how long a finished run took, for the estimates of later ones.

    Args:
        folder: the cache; a file of it is rewritten.
        job: what was done.
        seconds: by step, as in ``measured.json``; its total is left out.
        device: cpu or cuda.
        threads: of the processor.
    """
    taken = {step: value for step, value in seconds.items() if step != "total"}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    run = Run(processor(), device, threads, today, work(job), taken)
    runs = newest([*_read(folder), run])
    try:
        storage.make_folder(folder)
        text = json.dumps({"runs": [asdict(one) for one in runs]}, indent=1)
        storage.write_text(folder / FILE, text + "\n")
    except StorageError as error:  # the run is finished, whatever becomes of this note
        log.warning("%s The next plan will not know how long this run took.", error)


def estimate(
    folder: Path, job: Job, *, device: str = "cpu", threads: int | None = None
) -> Estimate:
    """How long a run will take, from the runs of this processor on this device.

    Args:
        folder: the cache.
        job: what is to be done.
        device: cpu or cuda.
        threads: of the processor; those of the last run by default.
    """
    here = [r for r in _read(folder) if (r.processor, r.device) == (processor(), device)]
    if not here:
        return Estimate(None, {}, "unknown: no run on this machine yet")
    threads = threads or here[-1].threads
    runs, computed = [r for r in here if r.threads == threads], _counted(threads, "thread")
    if not runs:
        return Estimate(None, {}, f"unknown: no run with {computed} here yet")
    ahead = work(job)
    steps = dict(_steps(runs, ahead))
    if untold := [step for step, amount in ahead.items() if amount and step not in steps]:
        what = " and ".join(untold)
        return Estimate(None, steps, f"unknown: no run with {computed} here tells of {what} yet")
    note = f"from {_counted(len(runs), 'run')} here with {computed}, the last on {runs[-1].date}"
    return Estimate(sum(steps.values()), steps, note)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_class(work: Mapping[str, float]) -> int:
    """The power of ten of a run's operations."""
    return int(math.log10(max(sum(work.values()), 1.0)))


def newest(runs: list[Run]) -> list[Run]:
    """The last few runs of each kind and size, in the order in which they are."""
    seen: Counter[tuple[str, str, int, int]] = Counter()
    kept = []
    for run in reversed(runs):
        seen[run.kind] += 1
        if seen[run.kind] <= _KEPT:
            kept.append(run)
    return kept[::-1]


def _steps(runs: list[Run], ahead: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Seconds of every step that past runs tell of."""
    for step in dict.fromkeys(step for run in runs for step in run.seconds):
        told = [run for run in runs if step in run.seconds]
        if (amount := ahead.get(step)) is None:  # nothing that a cache keeps, but for downloads
            amounts = [(sum(run.work.values()), run.seconds[step]) for run in told]
            yield step, median(taken for _, taken in _nearest(amounts, sum(ahead.values())))
            continue
        told = [run for run in told if run.seconds[step] >= _TOO_SHORT]
        amounts = [(run.work[step], run.seconds[step]) for run in told if run.work.get(step)]
        if near := _nearest(amounts, amount):
            yield step, amount * median(seconds / work for work, seconds in near)


def _nearest(told: list[tuple[float, float]], amount: float) -> list[tuple[float, float]]:
    """Of pairs of work and seconds, those of work as near as the nearest, up to `_AS_NEAR`."""
    far = [abs(math.log(max(work, 1.0) / max(amount, 1.0))) for work, _ in told]
    most = min(far, default=0.0) + math.log(_AS_NEAR)
    return [pair for pair, distance in zip(told, far, strict=True) if distance <= most]


def _read(folder: Path) -> list[Run]:
    """Past runs, the oldest first; none where the file is missing or not what was written."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [_run(fields) for fields in storage.read_json(path)["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not what was written there (%s); it is begun anew.", path, error)
        return []


def _run(fields: Mapping[str, Any]) -> Run:
    numbers = {
        name: {str(step): float(value) for step, value in fields[name].items()}
        for name in ("work", "seconds")
    }
    texts = {name: str(fields[name]) for name in ("processor", "device", "date")}
    return Run(threads=int(fields["threads"]), **texts, **numbers)  # type: ignore[arg-type]


def processor() -> str:
    """The processor's name and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    path = Path("/proc/cpuinfo")
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"

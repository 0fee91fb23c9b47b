"""Progress on stderr: live bars on a terminal, plain lines, a few a minute, in a pipe."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from compress.cli import console
from compress.report import numbers
from compress.results import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Watch = Callable[[Progress], None]
LINE_INTERVAL_SECONDS = 5.0
PACES = 9  # of the last intervals, whose median tells how long the rest will take
PACE_INTERVAL_SECONDS = 1.0  # the shortest that tells


@contextlib.contextmanager
def watching(*, quiet: bool) -> Iterator[Watch]:
    """Yield the callable that shows progress for as long as the context lasts.

    What libraries print meanwhile goes to stderr: stdout is for results.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if quiet:
            yield lambda record: None
        elif sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            with _bars(console.terminal(stderr=True)) as bars:
                yield LiveBars(bars)
        else:
            yield PlainLines(sys.stderr)


class LiveBars:
    """One bar for each step; a step that starts again starts its bar again."""

    def __init__(self, bars: Bars, clock: Callable[[], float] = time.monotonic) -> None:
        """Show steps on `bars`, which is live; `clock` gives seconds."""
        self._bars, self._clock = bars, clock
        self._tasks: dict[str, TaskID] = {}
        self._paces: dict[str, Pace] = {}

    def __call__(self, record: Progress) -> None:
        """Show one record."""
        pace = self._paces[record.step] = seen(record, self._clock(), self._paces.get(record.step))
        left = pace.left_seconds(record)
        fields: dict[str, Any] = {
            "count": count(record),
            "left": "" if left is None else f"{numbers.duration(left)} left",
            "detail": detail(record),
            "resident": numbers.size(resident_bytes()),
        }
        task = self._tasks.get(record.step)
        if task is None:
            task = self._tasks[record.step] = self._bars.add_task(
                record.step, total=record.total or None, **fields
            )
        elif record.done < self._bars.tasks[task].completed:
            self._bars.reset(task)
        self._bars.update(task, completed=record.done, total=record.total or None, **fields)


class PlainLines:
    """One line when a step begins, one when it ends, and one every few seconds between."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `stream`; `clock` gives seconds."""
        self._stream, self._clock = stream, clock
        self._paces: dict[str, Pace] = {}
        self._written = 0.0

    def __call__(self, record: Progress) -> None:
        """Write one record, unless a line was written a moment ago."""
        now, before = self._clock(), self._paces.get(record.step)
        ends = 0 < record.total <= record.done and (before is None or record.done != before.done)
        pace = self._paces[record.step] = seen(record, now, before)
        if before is None or ends or now - self._written >= LINE_INTERVAL_SECONDS:
            self._written = now
            told = line(record, now - pace.began, pace.left_seconds(record))
            print(told, file=self._stream, flush=True)


class Pace:
    """How long the rest of a step takes, by the median of its last intervals.

    The median, because one slow unit (mostly the first, which warms everything up) says nothing of
    the others. An interval spans a second at least, so that tiny units are timed many at once.
    """

    def __init__(self, now: float, done: int) -> None:
        """Begin at `now` seconds, when `done` units were done."""
        self.began, self.done = now, done
        self._mark = (now, done)
        self._seconds_per_unit: deque[float] = deque(maxlen=PACES)

    def reach(self, now: float, done: int) -> None:
        """Note that `done` units are done."""
        self.done = done
        then, before = self._mark
        if done > before and now - then >= PACE_INTERVAL_SECONDS:
            self._seconds_per_unit.append((now - then) / (done - before))
            self._mark = (now, done)

    def left_seconds(self, record: Progress) -> float | None:
        """Seconds until all of `record.total` is done; None before it can be known, and after."""
        if not (self._seconds_per_unit and record.done < record.total):
            return None
        # Of two, the lower: the slow one is the exception.
        return statistics.median_low(self._seconds_per_unit) * (record.total - record.done)


def seen(record: Progress, now: float, pace: Pace | None) -> Pace:
    """The pace of a step once a record of it was seen; a step that goes back has begun again."""
    if pace is None or record.done < pace.done:
        return Pace(now, record.done)
    pace.reach(now, record.done)
    return pace


def detail(record: Progress) -> str:
    """What is at work, while it is; what a step of training measured stays to be read."""
    return record.detail if record.done < record.total or record.unit == "step" else ""


def line(record: Progress, elapsed_seconds: float, left_seconds: float | None) -> str:
    """One record as text: step, block i of n, what is at work, elapsed, left, resident memory."""
    parts = [f"{record.step}: {count(record)}"]
    if said := detail(record):
        parts.append(said)
    parts.append(f"{numbers.duration(elapsed_seconds)} elapsed")
    if left_seconds is not None:
        parts.append(f"{numbers.duration(left_seconds)} left")
    parts.append(f"{numbers.size(resident_bytes())} resident")
    return ", ".join(parts)


def count(record: Progress) -> str:
    """How far a step is: block 3/30, or 12.0 MB/90.0 MB."""
    if record.unit == "byte":
        total = f"/{numbers.size(record.total)}" if record.total else ""  # servers may not tell
        return numbers.size(record.done) + total
    return f"{record.unit} {record.done:,}/{record.total:,}"


def resident_bytes() -> int:
    """Memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _bars(terminal: Console) -> Bars:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[resident]}", style="dim", markup=False),
        TextColumn(
            "{task.fields[detail]}", style="dim", markup=False, table_column=Column(no_wrap=True)
        ),
        console=terminal,
    )

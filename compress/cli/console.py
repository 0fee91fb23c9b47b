"""What the terminal shows: progress on stderr, one table or one JSON document on stdout.

Progress is live on a terminal and plain lines, a few a minute, in a pipe. Only `cli` prints.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from compress.report import numbers
from compress.results import Divergence, Perplexity, Progress, Side

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID
    from rich.table import Table

    from compress.report.rows import Row

Watch = Callable[[Progress], None]
LINE_INTERVAL_SECONDS = 5.0
PIPE_WIDTH = 120  # columns of a table that no terminal limits


def say(text: str) -> None:
    """Tell the user something that is not a result: on stderr, as it is."""
    print(text, file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Write a result as plain text."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def emit_json(value: Any) -> None:
    """Write one JSON document."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def watching(*, quiet: bool) -> Iterator[Watch]:
    """Yield the callable that shows progress for as long as the context lasts.

    What libraries print meanwhile goes to stderr: stdout is for results.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if quiet:
            yield lambda record: None
        elif sys.stderr.isatty():
            from rich.console import Console

            with _bars(Console(stderr=True)) as bars:
                yield LiveBars(bars)
        else:
            yield PlainLines(sys.stderr)


class LiveBars:
    """One bar for each step; a step that starts again starts its bar again."""

    def __init__(self, bars: Bars) -> None:
        """Show steps on `bars`, which is live."""
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, record: Progress) -> None:
        """Show one record."""
        fields: dict[str, Any] = {
            "count": count(record),
            "detail": record.detail if record.done < record.total else "",
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
        self._began: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._written = 0.0

    def __call__(self, record: Progress) -> None:
        """Write one record, unless a line was written a moment ago."""
        now, before = self._clock(), self._done.get(record.step)
        if before is None or record.done < before:
            self._began[record.step] = now
        ends = 0 < record.total <= record.done and record.done != before
        self._done[record.step] = record.done
        if before is None or ends or now - self._written >= LINE_INTERVAL_SECONDS:
            self._written = now
            print(line(record, now - self._began[record.step]), file=self._stream, flush=True)


def line(record: Progress, elapsed_seconds: float) -> str:
    """One record as text: step, block i of n, what is at work, elapsed, left, resident memory."""
    parts = [f"{record.step}: {count(record)}"]
    if record.detail and record.done < record.total:
        parts.append(record.detail)
    parts.append(f"{numbers.duration(elapsed_seconds)} elapsed")
    if 0 < record.done < record.total and elapsed_seconds >= 1:  # before that it would be a guess
        left = elapsed_seconds * (record.total - record.done) / record.done
        parts.append(f"{numbers.duration(left)} left")
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


def summary_table(rows: Sequence[Row]) -> Table:
    """The one table that ends a run: before, after, difference; below it, what was measured."""
    table = _table("", "before", "after", "difference")
    for row in rows:
        table.add_row(row.label, row.before, row.after, row.difference)
    table.caption = "\n".join(f"{row.label}: {row.note}" for row in rows if row.note)
    return table


def side_table(side: Side, divergence: Divergence | None) -> Table:
    """One model as evaluated: measure, value, protocol."""
    table = _table("", "value")
    table.add_column("measured on", style="dim")
    table.add_row("size on disk", numbers.size(side.size_bytes))
    table.add_row("bits per weight", f"{side.bits_per_weight:.2f}", "block linears, all bytes")
    if side.perplexity:
        table.add_row("perplexity", f"{side.perplexity.perplexity:.2f}", _protocol(side.perplexity))
    if divergence:
        text = f"{divergence.tokens:,} tokens of {divergence.set}"
        table.add_row("KL to the teacher, mean", f"{divergence.kl_mean:.4f} nats", text)
        table.add_row("KL to the teacher, 99th percentile", f"{divergence.kl_p99:.4f} nats", text)
        table.add_row("top-1 agreement", f"{100 * divergence.top1_agreement:.1f} %", text)
    for task in side.tasks:
        score = f"{100 * task.accuracy:.1f} ± {100 * task.stderr:.1f} %"
        table.add_row(task.name, score, f"{task.items:,} items, {task.metric}")
    return table


def fact_table(facts: Mapping[str, Any]) -> Table:
    """Facts by name; a list or a mapping fills several lines, bytes are said as people say them."""
    table = _table("")
    table.add_column("")
    table.show_header = False
    for name, value in facts.items():
        table.add_row(name.removesuffix("_bytes").replace("_", " "), _fact(name, value))
    return table


def show(table: Table) -> None:
    """Write a table: as wide as the terminal, or as it needs in a pipe."""
    from rich.console import Console

    terminal = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    with terminal.capture() as captured:
        terminal.print(table)
    emit("\n".join(text.rstrip() for text in captured.get().strip("\n").splitlines()))


def _protocol(found: Perplexity) -> str:
    windows = f"{found.windows:,} windows of {found.seq_len:,} tokens"
    return f"{found.set}, {windows}, stride {found.stride:,}"


def _fact(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_fact(name, one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return numbers.size(value) if name.endswith("_bytes") else f"{value:,}"
    return str(value)


def _table(first: str, *numbers: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False, caption_justify="left", caption_style="dim")
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _bars(terminal: Console) -> Bars:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[resident]}", style="dim", markup=False),
        TextColumn(
            "{task.fields[detail]}", style="dim", markup=False, table_column=Column(no_wrap=True)
        ),
        console=terminal,
    )

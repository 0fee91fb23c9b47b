"""What the terminal shows: sentences on stderr, one table or one JSON document on stdout.

Only `cli` prints.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from compress.report import numbers
from compress.report import verdict as gates
from compress.results import Divergence, Perplexity, Side, Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from compress.report.rows import Row
    from compress.report.rows import Table as Words

_CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
_TINTS = {gates.PASSED: "green", gates.MISSED: "bold red"}
PIPE_WIDTH = 120  # columns of a table that no terminal limits
ENDLESS = 10_000


def say(text: str) -> None:
    """Tell the user something that is not a result, on stderr."""
    print(fitted(printable(text), sys.stderr), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text fit for a terminal: what a stranger's file says must not move its cursor."""
    return text.translate(_CONTROL)


def fitted(text: str, stream: TextIO) -> str:
    """Sentences broken between words where a terminal would break them anywhere."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(
            line, width, subsequent_indent=" " * (len(line) - len(line.lstrip())),
            break_long_words=False, break_on_hyphens=False, drop_whitespace=len(line) > width,
        )
        for line in text.split("\n")
    )  # fmt: skip


def tell(text: str) -> None:
    """Write a result in sentences."""
    emit(fitted(printable(text), sys.stdout))


def emit(text: str) -> None:
    """Write a result as plain text."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def emit_json(value: Any) -> None:
    """Write one JSON document: null, as for what is not known, where a number is not finite."""
    emit(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """Plain data without the numbers that JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Look for no garbage inside, nor ever again in what is there behind: what is opened stays.

    Each look through all that torch brings takes a tenth of a second, and holds up every answer.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def process_began() -> float:
    """When this process began, in seconds as `time.time` counts them."""
    import psutil

    return float(psutil.Process().create_time())


def summary_table(rows: Sequence[Row]) -> Table:
    """The one table that ends a run: before, after, difference; below it, what was measured."""
    table = _table("", "before", "after", "difference")
    for row in rows:
        table.add_row(row.label, row.before, row.after, row.difference)
    table.caption = "\n".join(f"{row.label}: {row.note}" for row in rows if row.note)
    return table


def gate_table(verdict: Verdict) -> Table:
    """The verdict in the first line, then every gate: what is demanded, what was found."""
    from rich.text import Text

    words = gates.gate_table(verdict)
    table = _table(words.header[0])
    for name in words.header[1:]:
        table.add_column(name, overflow="fold")
    for row in words.rows:
        table.add_row(*(Text(cell, _TINTS.get(cell, "")) for cell in row))
    colour = "bold green" if verdict.outcome == "ACCEPT" else "bold red"
    table.title = Text.assemble((verdict.outcome, colour), f": {gates.sentence(verdict)}")
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
    table.add_column("", overflow="fold")
    table.show_header = False
    for name, value in facts.items():
        table.add_row(name.removesuffix("_bytes").replace("_", " "), _fact(name, value))
    return table


def outcome_table(rows: Iterable[tuple[str, str, str]]) -> Table:
    """What was checked, how it ended and what was found, a row each; failures stand out."""
    from rich.text import Text

    table = _table("")
    table.show_header = False
    table.add_column("")
    table.add_column("", overflow="fold")
    for name, outcome, found in rows:
        style = "bold red" if outcome == "failed" else ""
        table.add_row(Text(name), Text(outcome, style), Text(found))
    return table


def comparison_table(title: str, rows: Iterable[tuple[str, ...]]) -> Table:
    """What differs between two things: a name, the first's, the second's and, if known, a note."""
    from rich.text import Text

    table = _table(title)
    table.add_column("A", overflow="fold")
    table.add_column("B", overflow="fold")
    table.add_column("", overflow="fold", style="dim")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def text_table(text: Words) -> Table:
    """A table of the report, as it is: words to the left, numbers to the right."""
    from rich.text import Text

    table = _table(text.header[0])
    for place, name in enumerate(text.header[1:], start=1):
        justify: Literal["left", "right"] = "left" if place < text.words else "right"
        table.add_column(Text(printable(name)), justify=justify, overflow="fold")
    for row in text.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def terminal(*, stderr: bool = False, width: int | None = None, highlight: bool = True) -> Console:
    """What Rich writes through; where NO_COLOR is set, nothing that is not text."""
    from rich.console import Console

    # Rich itself leaves out colours only, and still writes bold and dim.
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        stderr=stderr, width=width, highlight=highlight, color_system=None if plain else "auto"
    )


def terminal_width() -> int | None:
    """Columns of the terminal, or as COLUMNS says; None in a pipe, which has no end."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return terminal().width if known else None


def show(table: Table, width: int = PIPE_WIDTH) -> None:
    """Write a table: as wide as the terminal, or as it needs up to `width` in a pipe."""
    shown = terminal(width=terminal_width() or width, highlight=False)
    with shown.capture() as captured:
        shown.print(table)
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
    return str(value) or "none"


def _table(first: str, *numbers: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(
        box=SIMPLE, pad_edge=False, title_justify="left", title_style="",
        caption_justify="left", caption_style="dim",
    )  # fmt: skip
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table

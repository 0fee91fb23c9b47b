"""The command `sweep`: many recipes under one budget."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from compress.cli import completion, console, progress
from compress.cli.apply import Device, Json, Quiet, found
from compress.cli.tracked import Track, tell_sweep
from compress.report import numbers
from compress.results.swept import Swept, Trial

if TYPE_CHECKING:
    from rich.table import Table

    from compress.sweep import Ready
    from compress.sweep.board import Board, Row

NONE_WITHIN = 3  # exit code: nothing that was made, or looked at, is within the budget
UNTOLD = 1  # exit code: no trial came as far as to be held against the budget
_LINE_SECONDS = 15.0  # in a pipe, between two lines that tell how far one trial is
_TINTS = {"made": "green", "running": "cyan", "failed": "bold red", "rejected": "red"}
_MEASURES = {"size": "size", "kl_mean": "KL", "perplexity": "perplexity", "decode": "decode speed"}


def sweep(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="The name of a shipped sweep, or a path to a .yaml file.",
            autocompletion=completion.sweeps,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the sweep.  [default: ./<sweep>-sweep]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Trials at once, in place of the file's.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="A Ray cluster, such as auto or HOST:6379; all its machines must see --out.",
        ),
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and plan every trial, and run none.")
    ] = False,
    track: Track = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try many recipes, compare what they make, choose one.

    Cut short, the same command goes on where it stopped. Exit code 3: none is within the budget;
    1: no trial came so far.
    """
    from compress.recipe.sweep import load

    located = load(sweep)
    from compress import sweep as sweeps  # imports torch: only once the file is known to be right
    from compress import tracking

    folder = out or Path(f"{located.name}-sweep")
    if not dry_run:
        sweeps.check_folder(folder)
        if track:
            tracking.check(track)
    with progress.watching(quiet=quiet) as watch:
        ready = sweeps.plan(located, device=found(device), watch=watch)
    if dry_run:
        _show_plan(ready, json=json)
        return
    if not quiet:
        console.say(_announced(ready, workers))
    try:
        with _watching(quiet=quiet) as told:
            swept = sweeps.sweep(
                ready, out=folder, device=found(device), workers=workers, address=address,
                watch=told,
            )  # fmt: skip
    except KeyboardInterrupt:
        console.say(f"Cut short. {folder} holds what is finished; the same command goes on there.")
        raise
    _tell(swept, json=json, quiet=quiet)
    tell_sweep(track, swept, quiet=quiet)
    if swept.best is None:
        raise typer.Exit(NONE_WITHIN if _judged(swept) else UNTOLD)


def _announced(ready: Ready, workers: int | None) -> str:
    """What is about to run, in one line."""
    spec, planned = ready.located.sweep, ready.planned
    most = spec.budget.size_bytes
    large = [one for one in planned if most and not one.at_most and one.size_bytes > most]
    count = spec.trials if spec.search else len(planned)
    text = numbers.counted(count or 0, "trial")
    if large and not spec.search:
        text += f", {len(large)} of them planned larger than {spec.budget.size} and not run"
    text += f", of {numbers.counted(spec.threads, 'thread')} each"
    known = [one.seconds for one in planned if one.seconds is not None and one not in large]
    if known and len(known) == len(planned) - len(large):
        left = (count or 0) - (0 if spec.search else len(large))
        if at_once := workers or spec.workers:
            rounds = math.ceil(left / at_once)  # of as many at once as there are
            took = numbers.duration(rounds * sum(known) / len(known))
            text += f"; about {took}, told by past runs"
    return text


def _show_plan(ready: Ready, *, json: bool) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from compress.sweep.candidates import trial_of

    most = ready.located.sweep.budget.size_bytes
    rows = [(trial_of(one.point, ""), one) for one in ready.planned]
    over = [bool(most and not one.at_most and one.size_bytes > most) for _, one in rows]
    if json:
        trials = [
            {
                "recipe": trial.recipe, "fields": trial.fields, "size_bytes": one.size_bytes,
                "at_most": one.at_most, "seconds": one.seconds, "too_large": large,
            }
            for (trial, one), large in zip(rows, over, strict=True)
        ]  # fmt: skip
        console.emit_json({"trials": trials})
        return
    table = Table("trial", box=SIMPLE, pad_edge=False)
    for name in ("size", "time alone"):
        table.add_column(name, justify="right")
    table.add_column("")
    for (trial, one), large in zip(rows, over, strict=True):
        size = ("at most " if one.at_most else "") + numbers.size(one.size_bytes)
        alone = numbers.NONE if one.seconds is None else numbers.duration(one.seconds)
        table.add_row(console.printable(trial.label), size, alone, "too large" if large else "")
    console.show(table)
    if ready.located.sweep.search:
        console.tell("Those at the ends of what a search may choose; it may choose any between.")


@contextlib.contextmanager
def _watching(*, quiet: bool) -> Iterator[Watch | None]:
    """Show trials as they go: a table on a terminal, lines in a pipe."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from rich.live import Live

        shown = Shown()
        with Live(console=console.terminal(stderr=True), refresh_per_second=2, transient=True,
                  get_renderable=shown.table) as live:  # fmt: skip
            shown.live = live
            yield shown
    else:
        yield Lines(sys.stderr)


class Shown:
    """The board as a table that is drawn again and again."""

    def __init__(self) -> None:
        self.live: object = None
        self._board: Board | None = None

    def __call__(self, board: Board, name: str) -> None:
        """Take the board; it is drawn when its time comes."""
        self._board = board

    def table(self) -> Table | str:
        """The table as of now."""
        board = self._board
        if board is None:
            return ""
        rows = [*board.rows.values()]
        return trial_table(rows, caption=f"{_counted(board.trials)}; {_since(board.began)}")


class Lines:
    """A line for everything that becomes of a trial, and now and then how far it is."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._said: dict[str, tuple[str, float]] = {}

    def __call__(self, board: Board, name: str) -> None:
        """Tell what is new of one trial; of none, those that are known to have ended."""
        for one in (
            [name] if name else [n for n, r in board.rows.items() if r.trial.state in _ENDED]
        ):
            self._tell(board, one)

    def _tell(self, board: Board, name: str) -> None:
        row, now = board.rows[name], time.monotonic()
        state, when = self._said.get(name, ("", 0.0))
        if row.trial.state == state and now - when < _LINE_SECONDS:
            return
        if row.trial.state == state == "running" and row.progress is None:
            return
        self._said[name] = (row.trial.state, now)
        text = f"{row.trial.label}: {_state(row)}"
        if row.trial.state in _ENDED:
            text += f", {_found(row.trial)} ({_counted(board.trials)})"
        print(console.printable(text), file=self._stream, flush=True)


Watch = Shown | Lines
_ENDED = ("made", "rejected", "stopped", "too large", "invalid", "failed")


def trial_table(rows: Sequence[Row], caption: str = "", best: str | None = None) -> Table:
    """One row a trial: what it is, how it stands, what was found."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False, caption=caption or None, caption_justify="left")
    table.add_column("trial", overflow="fold")
    table.add_column("state", overflow="fold", min_width=16)
    for name in ("size", "KL", "tokens/s", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        trial = row.trial
        label = Text(console.printable(trial.label), "bold" if trial.name == best else "")
        star = " ★" if trial.name == best else ""
        state = Text(console.printable(_state(row)), _TINTS.get(trial.state, ""))
        table.add_row(label + star, state, *_cells(trial), _seconds(row.seconds))
    return table


def _cells(trial: Trial) -> tuple[str, str, str]:
    """Size, KL and speed; ! where it is more, or less, than the budget allows."""
    marks = dict.fromkeys(trial.over, " !")
    size = numbers.NONE if trial.size_bytes is None else numbers.size(trial.size_bytes)
    kl = trial.glance_kl_mean if trial.kl_mean is None else trial.kl_mean
    about = "≈ " if trial.kl_mean is None and kl is not None else ""
    speed = trial.decode_tokens_per_second
    return (
        size + marks.get("size", ""),
        numbers.NONE if kl is None else f"{about}{kl:.4f}{marks.get('kl_mean', '')}",
        numbers.NONE if speed is None else f"{speed:.0f}{marks.get('decode', '')}",
    )


def _state(row: Row) -> str:
    trial, last = row.trial, row.progress
    if trial.state == "running" and last:
        return f"{last.step} {progress.count(last)}"
    again = f", begun again {trial.restarts} ×" if trial.restarts else ""
    return trial.state + again


def _found(trial: Trial) -> str:
    if trial.reason:
        return trial.reason
    size, kl, speed = _cells(trial)
    return f"{size}, KL {kl}, {speed} tokens/s, {_seconds(trial.seconds)}"


def _seconds(seconds: float | None) -> str:
    return numbers.NONE if seconds is None else numbers.duration(seconds)


def _counted(trials: Sequence[Trial]) -> str:
    ended = sum(one.state in _ENDED for one in trials)
    return f"{ended} of {len(trials)} done"


def _since(began: float) -> str:
    return f"{numbers.duration(time.monotonic() - began)} elapsed"


def _tell(swept: Swept, *, json: bool, quiet: bool) -> None:
    from compress.sweep.board import Row

    if json:
        console.emit_json(swept.as_dict())
        return
    if quiet:
        return
    console.show(trial_table([Row(one) for one in swept.trials], best=swept.best))
    for line in sentences(swept):
        console.tell(line)


def sentences(swept: Swept) -> Iterator[str]:
    """What a sweep has found, a line each."""
    by_name = {one.name: one for one in swept.trials}
    for one in swept.trials:
        if one.reason and one.state not in ("waiting", "running", "cut"):
            yield f"{one.state}: {one.label}: {one.reason}"
    if any(one.over for one in swept.trials if one.state == "made"):
        yield "! is more, or less, than the budget allows."
    if swept.front:
        names = "; ".join(by_name[name].label for name in swept.front)
        yield f"Not beaten in both size and quality: {names}."
    if swept.ended_by:
        yield f"Ended early: {swept.ended_by}."
    if swept.page:
        yield f"Compared in {swept.page}"
    if swept.best is None:
        yield _none(swept)
        return
    chosen = by_name[swept.best]
    yield f"Best by {_MEASURES[swept.objective]}, within the budget: {chosen.label}"
    yield f"It is made: {Path(swept.folder) / 'trials' / chosen.name}"
    yield f"To make it again, to the same bytes: {swept.command}"


def _none(swept: Swept) -> str:
    """Why there is no best."""
    if any(one.state in ("waiting", "cut") for one in swept.trials):
        finished = "None that is finished is within the budget" if _judged(swept) else ""
        return f"{finished or 'None is finished'}; the same command goes on."
    if _judged(swept):
        return "None is within the budget. Allow more, or vary other fields."
    return "No trial was made: the reasons stand above."


def _judged(swept: Swept) -> bool:
    """Whether any trial was held against the budget."""
    return any(one.state in ("made", "rejected", "stopped", "too large") for one in swept.trials)

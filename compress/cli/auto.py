"""The command `auto`: a shipped recipe that keeps some limits, written out for the user."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress import library
from compress.cli import completion, console, progress
from compress.cli.apply import Device, Json, Quiet, Sets, Threads, found
from compress.cli.recipes import write_new
from compress.errors import ModelError, RecipeError, RequestError
from compress.report import numbers
from compress.report.numbers import NONE
from compress.results.choice import NOT_TRIED, RULED_OUT, Choice, Option, Wanted

if TYPE_CHECKING:
    from rich.table import Table

    from compress.auto.choosing import Trials

_NONE_MEETS = 3


def auto(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="The model, as a recipe names it.")
    ],
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Of the whole folder, such as 80MB."),
    ] = None,
    max_kl: Annotated[
        str | None,
        typer.Option("--max-kl", metavar="NATS", help="Mean KL to the teacher, nats per token."),
    ] = None,
    min_speed: Annotated[
        str | None,
        typer.Option(
            "--min-speed", metavar="TOKENS", help="Decoded a second, here, by our runtime."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Recipes that are tried, at most.")
    ] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Recipe to write.  [default: ./auto-<teacher>.yaml]"
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", help="Folder of the trials.  [default: ./auto-<teacher>]"),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite", help="What trials are judged by.", autocompletion=completion.suites
        ),
    ] = "short",
    sets: Sets = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find a recipe that keeps a size, a quality, a speed.

    Plans rule out shipped recipes that cannot; short trials of the most promising ones, the best
    first, say which does. It is written out as a file of your own, with gates for what is wanted.
    The same command goes on where it stopped, and reads trials that are finished.
    """
    from compress.artifact.output import short_name
    from compress.auto import wanted as limits

    wanted, mistakes = limits.parse(max_size, max_kl, min_speed)
    name = f"auto-{short_name(teacher)}"
    file, folder = out or Path(f"{name}.yaml"), work or Path(name)
    _check(mistakes, teacher, file, folder, suite)
    from compress.auto import owned
    from compress.auto.choosing import Trials

    with progress.watching(quiet=quiet) as watch:
        how = Trials(folder, trials, suite, found(device), threads, watch)
        choice = _chosen(teacher, wanted, how, sets or ())
    if choice.chosen:
        command = f"compress apply {shlex.quote(_as_path(file))}"
        text = owned.text(choice, file.stem, date=_today(), command=command)
        write_new(file, text)
        choice = dataclasses.replace(choice, file=str(file), command=command)
    _print(choice, json=json, quiet=quiet)
    if not choice.chosen:
        raise typer.Exit(_NONE_MEETS)


def _check(mistakes: list[str], teacher: str, file: Path, folder: Path, suite: str) -> None:
    """Refuse what cannot be done before anything is fetched or run.

    Raises:
        RequestError: all of it.
    """
    from compress.recipe.suite import load_suite
    from compress.teacher import headers

    if file.exists():
        mistakes.append(f"--out {file}: exists and is not overwritten. Name another file.")
    elif not file.parent.is_dir():
        mistakes.append(f"--out {file}: {file.parent} is no folder. Make it, or write elsewhere.")
    elif wrong := library.misnamed(file):
        mistakes.append(f"--out {wrong}")
    if folder.exists() and not folder.is_dir():
        mistakes.append(f"--work {folder}: is no folder. Name another one.")
    try:
        load_suite(suite)
    except RecipeError as error:
        mistakes += error.mistakes
    try:
        if _is_here(teacher):
            headers.read(teacher)
    except ModelError as error:
        mistakes.append(str(error))
    if mistakes:
        raise RequestError("\n".join(mistakes), section="auto")


def _is_here(teacher: str) -> bool:
    """Whether a teacher's name is that of a file or folder of this machine, there or not."""
    from compress.teacher import sources

    if teacher.startswith("pypi:"):
        return False
    local = sources.as_path(teacher)
    return teacher.endswith(".gguf") or local.is_dir() or sources.looks_local(teacher)


def _chosen(teacher: str, wanted: Wanted, how: Trials, sets: Sequence[str]) -> Choice:
    from compress.auto import choose
    from compress.teacher import sources

    try:
        return choose(sources.fetch(teacher, watch=how.watch), wanted, how, sets)
    except KeyboardInterrupt:
        console.say(f"Cut short. {how.work} holds the trials; the same command goes on from there.")
        raise


def _print(choice: Choice, *, json: bool, quiet: bool) -> None:
    if json:
        console.emit_json(choice.as_dict())
    elif not quiet:
        if any(one.verdict != RULED_OUT for one in choice.options):
            console.show(_table(choice))
        for line in _sentences(choice):
            console.emit(console.printable(line))


def _table(choice: Choice) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    for title in ("planned", "made", "KL, trial (95 %)", "tokens/s", "KL, catalogue"):
        table.add_column(title, justify="right")
    table.add_column("verdict", overflow="fold")
    for one in choice.options:
        if one.verdict == RULED_OUT:
            continue
        table.add_row(*(Text(console.printable(cell)) for cell in _cells(one)))
    return table


def _cells(one: Option) -> Iterator[str]:
    from compress.auto import owned

    trial = one.trial
    planned = NONE if one.planned_size_bytes is None else numbers.size(one.planned_size_bytes)
    yield one.recipe
    yield f"≤ {planned}" if one.at_most else planned
    yield numbers.size(trial.size_bytes) if trial else NONE
    yield owned.estimate(trial.kl) if trial and trial.kl else NONE
    yield owned.estimate(trial.speed) if trial and trial.speed else NONE
    yield NONE if one.catalogue_kl is None else numbers.digits(one.catalogue_kl)
    yield f"{one.verdict}: {one.reason}" if one.reason else one.verdict


def _sentences(choice: Choice) -> Iterator[str]:
    from compress.auto import owned
    from compress.auto.wanted import told

    tried = [one for one in choice.options if one.verdict not in (NOT_TRIED, RULED_OUT)]
    reasons: dict[str, list[str]] = {}
    for one in choice.options:
        if one.verdict == RULED_OUT:
            reasons.setdefault(one.reason, []).append(one.recipe)
    for reason, names in reasons.items():
        yield f"Ruled out: {', '.join(names)}: {reason}"
    yield f"Wanted: {told(choice.wanted)}. Tried {len(tried)} in short: {choice.protocol}."
    if choice.chosen:
        option = choice.option(choice.chosen)
        yield f"Chosen: {option.recipe}: {owned.found(option)}."
        yield f"Wrote {choice.file}. Carry it out:  {choice.command}"
    elif choice.nearest:
        option = choice.option(choice.nearest)
        yield (
            f"None keeps it; nothing was written. Nearest: {option.recipe}: {owned.found(option)}."
        )
    else:
        yield "None keeps it, and none could be planned; nothing was written."


def _as_path(file: Path) -> str:
    """A path that no shipped name is taken for."""
    return str(file) if "/" in str(file) else f"./{file}"


def _today() -> str:
    from compress import machine

    return machine.today()

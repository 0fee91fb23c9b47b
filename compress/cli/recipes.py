"""The recipes that ship: `recipes ls`, `show`, `copy`, `check`."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress import catalogue, library
from compress.catalogue import DENSE, Catalogue, Measurement
from compress.cli import completion, console
from compress.cli.apply import Json, RecipeName
from compress.errors import RecipeError, RequestError
from compress.report import numbers
from compress.report.numbers import NONE

if TYPE_CHECKING:
    from rich.table import Table

recipes = typer.Typer(
    name="recipes", help="The recipes that ship with compress.", no_args_is_help=True
)
_NAME, _ABOUT = "recipe", "what it is"
_MEASURED: dict[str, Callable[[Measurement], str]] = {  # columns, as they stand
    "MB": lambda one: f"{one.size_bytes / 1e6:.1f}",
    "bits": lambda one: f"{one.bits_per_weight:.2f}",
    "perplexity": lambda one: _number(one.perplexity, ".2f"),
    "KL mean": lambda one: _number(one.kl_mean, ".4f"),
    "top-1 %": lambda one: _number(one.top1_agreement, ".1f", 100),
    "tokens/s": lambda one: _number(one.decode_tokens_per_second, ".0f"),
    "minutes": lambda one: f"{one.seconds / 60:.1f}",
    "of CPUs": lambda one: f"{one.cpu_seconds / 60:.1f}",
    "GiB": lambda one: f"{one.peak_memory_bytes / 2**30:.2f}",
}
_WANTED = (  # the last is dropped first where a terminal is too narrow
    "MB", "KL mean", _ABOUT, "perplexity", "tokens/s", "minutes", "bits", "top-1 %", "of CPUs",
    "GiB",
)  # fmt: skip
_LEAST_ABOUT = 24  # characters of it that are worth a column
_TEACHER_ABOUT = "the teacher as it is"


@dataclasses.dataclass(frozen=True)
class _Row:
    name: str
    about: str
    measured: Measurement | None
    changed: bool = False


@recipes.command("ls")
def ls(json: Json = False) -> None:
    """List the shipped recipes, and what was measured of them.

    Smallest first; a narrow terminal gets fewer columns.
    """
    found = catalogue.read()
    rows = list(_rows(found))
    if json:
        dense = found.dense and dataclasses.asdict(found.dense)
        listed = [dataclasses.asdict(row) for row in rows if row.name != DENSE]
        console.emit_json({"dense": dense, "recipes": listed})
        return
    width = console.terminal_width()
    console.show(_table(rows, width), console.ENDLESS)
    for note in _notes(rows):
        console.emit(textwrap.fill(note, width or console.PIPE_WIDTH))


@recipes.command("show")
def show(name: RecipeName, json: Json = False) -> None:
    """Print one recipe as it is written.

    Below it, as comments, what was measured of it.
    """
    path = _recipe(name)
    text, found = _text(path), catalogue.read()
    measured = None if library.is_path(name) else found.recipes.get(name)
    stale = bool(measured) and name in catalogue.changed(found)
    if json:
        from compress.recipe.source import mapping

        was = measured and dataclasses.asdict(measured)
        told = {"name": path.stem, "recipe": mapping(path), "measured": was, "changed": stale}
        console.emit_json(told)
        return
    console.emit(text)
    if measured:
        console.emit(f"\n# Measured{' before it was changed' if stale else ''}:")
        for line in _told(measured, found.dense):
            console.emit(f"#   {line}")


@recipes.command("copy")
def copy(
    name: RecipeName,
    to: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="[default: ./<recipe>.yaml]")
    ] = None,
    json: Json = False,
) -> None:
    """Copy a shipped recipe to a file of your own.

    An existing file is never overwritten.
    """
    source = _recipe(name)
    text, target = _text(source), to or Path(source.name)
    if wrong := library.misnamed(target):
        raise RequestError(wrong)
    write_new(target, text)
    if json:
        console.emit_json({"name": source.stem, "file": str(target)})
    else:
        console.emit(str(target))


@recipes.command("check")
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE]…",
            help="[default: all shipped]",
            autocompletion=completion.recipes,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check recipes without running them.

    Every mistake is told with its line, but for those that depend on the model: see `plan`.
    """
    found = {name: _mistakes(name) for name in names or library.names("recipes")}
    if json:
        checked = [{"recipe": name, "mistakes": wrong} for name, wrong in found.items()]
        console.emit_json({"checked": checked, "passed": not any(found.values())})
    for name, wrong in found.items():
        if not wrong and not json:
            console.emit(f"{name}: ok")
    if mistakes := [text for wrong in found.values() for text in wrong]:
        raise RecipeError(mistakes)


def _mistakes(name: str) -> list[str]:
    from compress.recipe.load import load

    try:
        load(name)
    except RecipeError as error:
        return list(error.mistakes)
    return []


def _recipe(name: str) -> Path:
    try:
        return library.find("recipes", name)
    except LookupError as error:
        raise RequestError(str(error)) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from error


def _rows(found: Catalogue) -> Iterator[_Row]:
    """Every recipe and the teacher, by their size; what was not measured stands last, by name."""
    stale = catalogue.changed(found)
    rows = [
        _Row(name, _about(name), found.recipes.get(name), name in stale)
        for name in library.names("recipes")
    ]
    if found.dense:
        rows.append(_Row(DENSE, _TEACHER_ABOUT, found.dense))
    yield from sorted((row for row in rows if row.measured), key=_size)
    yield from (row for row in rows if row.measured is None)


def _size(row: _Row) -> int:
    return row.measured.size_bytes if row.measured else 0


def _about(name: str) -> str:
    """The first line of a recipe, without its name."""
    first = _text(_recipe(name)).partition("\n")[0]
    return first.removeprefix("#").strip().removeprefix(name + ":").strip()


def _table(rows: Sequence[_Row], width: int | None) -> Table:
    """As many columns as fit, or all of them where no terminal limits."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    cells = {_NAME: [row.name + _marks(row, rows) for row in rows]}
    for title, said in _MEASURED.items():
        cells[title] = [said(row.measured) if row.measured else NONE for row in rows]
    cells[_ABOUT] = [row.about for row in rows]
    shown = _fitting(cells, width)
    box, gap = (None, _GAP) if width is None else (SIMPLE, _GAP - 1)  # a pipe gets no rule
    table = Table(box=box, pad_edge=False, padding=(0, gap, 0, 0))
    for title in shown:
        right = title in _MEASURED
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for place in range(len(rows)):
        table.add_row(*(Text(shown[title][place]) for title in shown))
    return table


def _fitting(cells: dict[str, list[str]], width: int | None) -> dict[str, list[str]]:
    """The columns that a terminal has room for, in their order; the last one cut where need be."""
    if width is None:
        return cells
    wide = {title: max(map(len, [title, *texts])) for title, texts in cells.items()}
    wide[_ABOUT] = min(wide[_ABOUT], _LEAST_ABOUT)
    left, kept = width - wide[_NAME] - _GAP, {_NAME}
    for title in _WANTED:
        if wide[title] + _GAP > left:
            break
        left -= wide[title] + _GAP
        kept.add(title)
    room = wide[_ABOUT] + left
    cut = {
        **cells,
        _ABOUT: [textwrap.shorten(one, room, placeholder=" …") for one in cells[_ABOUT]],
    }
    return {title: cut[title] for title in cells if title in kept}


_GAP = 2  # columns between two of them


def _marks(row: _Row, rows: Sequence[_Row]) -> str:
    other = row.measured and row.measured.suite != _suite(rows)
    return ("*" if row.changed else "") + ("†" if other else "")


def _suite(rows: Sequence[_Row]) -> str:
    """The suite by which most were judged."""
    suites = [row.measured.suite for row in rows if row.measured]
    return max(suites, key=suites.count, default="")


def _notes(rows: Sequence[_Row]) -> Iterator[str]:
    """On what the numbers were measured, and which of them compare with no other."""
    measured = [row.measured for row in rows if row.measured]
    if not measured:
        yield "None of them was measured."
        return
    dates = sorted({one.date for one in measured})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    where = {f"{one.teacher}, {one.threads} threads of {one.hardware}" for one in measured}
    yield (
        f"Measured on {'; '.join(sorted(where))}, {when}; judged by the suite {_suite(rows)}. "
        "minutes: on the wall, of CPUs: spent by processors; both without the download. "
        "`compress recipes show NAME` tells more."
    )
    if any(row.changed for row in rows):
        yield "* measured before the recipe was changed."
    others = sorted({one.suite for one in measured} - {_suite(rows)})
    if others:
        yield f"† judged by {', '.join(others)}: its perplexity and KL compare with no other."


def _told(one: Measurement, dense: Measurement | None) -> Iterator[str]:
    """What was measured of one recipe, line by line."""
    same = dense if dense and dense.suite == one.suite else None
    size = numbers.size(one.size_bytes)
    if dense:
        size = f"{numbers.size(dense.size_bytes)} → {size}"
    yield f"size           {size}, {one.bits_per_weight:.2f} bits per weight in the blocks"
    before = f"{_number(same.perplexity, '.2f')} → " if same else ""
    yield f"perplexity     {before}{_number(one.perplexity, '.2f')}   (suite {one.suite})"
    kl = f"{_number(one.kl_mean, '.4f')} nats a token, 99th percentile {_number(one.kl_p99, '.3f')}"
    yield f"KL to teacher  {kl}; top-1 agreement {_number(one.top1_agreement, '.1f', 100)} %"
    yield f"decode         {_number(one.decode_tokens_per_second, '.0f')} tokens/s in our runtime"
    spent = f"{numbers.duration(one.seconds)} on the wall, {numbers.duration(one.cpu_seconds)}"
    yield f"time           {spent} of processors, without the download"
    yield f"peak memory    {numbers.size(one.peak_memory_bytes)}"
    yield f"on             {one.teacher}, {one.threads} threads of {one.hardware}"
    yield f"by             {one.command}"
    yield f"               {one.date}, commit {one.commit}"


def _number(value: float | None, form: str, times: float = 1) -> str:
    return NONE if value is None else format(times * value, form)


def write_new(file: Path, text: str) -> None:
    """Write a file that is not there yet.

    Raises:
        RequestError: it is there, or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise RequestError(f"{file}: exists and is not overwritten. Name another file.") from None
    except OSError as error:
        raise RequestError(f"{file}: cannot be written ({error.strerror}).") from error

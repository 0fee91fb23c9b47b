"""The command `compare`: artifacts side by side."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress import storage
from compress.cli import completion, console, progress
from compress.cli.apply import Device, Json, Quiet, Threads
from compress.errors import RequestError

if TYPE_CHECKING:
    from compress.results.comparison import Comparison

_FLIPS = 10  # flipped items that the terminal lists


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="ARTIFACT…", help="Folders of finished runs, or of models."),
    ],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page that needs no other file."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all numbers, one a row.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json: Json = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="SUITE",
            help="Measure all of them now, by this one suite.",
            autocompletion=completion.suites,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="With --evaluate: whom all are held against; else the one that all locks name.",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Put artifacts side by side: size, quality, speed.

    Numbers of different protocols are shown and not ranked.
    """
    from compress.compare import compare as compared

    asked = {
        "--teacher": teacher is not None, "--device": device != "auto",
        "--threads": threads is not None,
    }  # fmt: skip
    idle = [name for name, given in asked.items() if given and evaluate is None]
    _check(html, csv, idle, markdown=markdown, json=json)
    if evaluate is None:
        found = compared(folders)
    else:
        from compress.cli.apply import found as device_found
        from compress.evaluate.alike import judge_alike  # imports torch

        with progress.watching(quiet=quiet) as watch:
            judge = functools.partial(
                judge_alike, suite=evaluate, teacher=teacher, device=device_found(device),
                threads=threads, watch=watch,
            )  # fmt: skip
            found = compared(folders, suite=evaluate, evaluate=judge)
    _write(found, html, csv)
    _print(found, markdown=markdown, json=json, quiet=quiet)
    for path in (html, csv):
        if path and not quiet:
            console.say(f"Wrote {path}")


def _check(
    html: Path | None, csv: Path | None, idle: Sequence[str], *, markdown: bool, json: bool
) -> None:
    """Refuse what cannot be done, before anything is read.

    Args:
        html: file of the page.
        csv: file of the numbers.
        idle: options that say how to measure, where nothing is measured.
        markdown: whether that is to be printed.
        json: whether that is.

    Raises:
        RequestError: all of it.
    """
    mistakes = [
        f"{path}: {path.parent} is no folder. Make it, or write elsewhere."
        for path in (html, csv)
        if path and not path.parent.is_dir()
    ]
    mistakes += [
        f"{path}: a folder. Name a file." for path in (html, csv) if path and path.is_dir()
    ]
    if markdown and json:
        mistakes.append("--markdown and --json: only one of them can be printed. Choose one.")
    mistakes += [
        f"{name}: says how to measure, and only --evaluate SUITE measures. Add that, or leave "
        f"{name} out."
        for name in idle
    ]
    if html and html == csv:
        mistakes.append(f"--html and --csv: both are {html}. Name two files.")
    if mistakes:
        raise RequestError("\n".join(mistakes))


def _write(found: Comparison, html: Path | None, csv: Path | None) -> None:
    if html:
        from compress.report.compared import page

        storage.write_text(html, page.render(found))
    if csv:
        from compress.report.compared.files import as_csv

        storage.write_text(csv, as_csv(found))


def _print(found: Comparison, *, markdown: bool, json: bool, quiet: bool) -> None:
    from compress.report.compared import files

    if json:
        console.emit_json(found.as_dict())
    elif markdown:
        console.emit(files.markdown(found))
    elif not quiet:
        _tell(found)


def _tell(found: Comparison) -> None:
    from compress.report.compared import cells, tables

    for said in cells.sentences(found):
        console.tell(said)
    console.show(console.text_table(tables.number_table(found)))
    console.tell(f"{tables.BEST} {cells.BEST_IS}.")
    for line in (*cells.refusals(found), *tables.notes(found)):
        console.tell(line)
    flips = tables.flip_table(found)
    shown = dataclasses.replace(flips, rows=flips.rows[:_FLIPS])
    for table in (
        tables.part_table(found),
        tables.pair_table(found),
        tables.recipe_table(found),
        tables.made_by_table(found),
        shown,
    ):
        if table.rows:
            console.show(console.text_table(table))
    if len(flips.rows) > _FLIPS:
        console.emit(f"and {len(flips.rows) - _FLIPS:,} more items; the page lists all of them")

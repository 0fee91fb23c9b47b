"""The commands that write what others read: `export`, `logits`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compress.cli import console, progress
from compress.cli.apply import Device, Json, Quiet, Threads, found

if TYPE_CHECKING:
    from compress.export import Export

Format = Literal["packed", "compressed-tensors", "gptq", "bnb-int8", "gguf", "dense"]


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="The folder of a finished run.")
    ],
    format: Annotated[
        Format, typer.Option("--format", help="What to write; docs/formats.md says who opens it.")
    ],
    out: Annotated[Path, typer.Option("--out", "--output", help="Folder to make.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write an artifact in another format: the same integers.

    Nothing is solved again. What the format cannot hold is refused; what it can only round is
    measured and told.
    """
    from compress import export as room

    with progress.watching(quiet=quiet) as watch:
        made = room.export(folder, format=format, out=out, watch=watch)
    if json:
        console.emit_json({**facts(made), "exact": made.difference.exact})
    elif not quiet:
        console.show(console.fact_table(facts(made)))


def logits(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="The name of a shipped recipe, or a path to a .yaml file."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Tokens kept of each distribution.")
    ] = 64,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one field. Repeatable."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what a recipe's teacher expects behind every token.

    Of the text that it trains on, else calibrates on: the likeliest tokens with their
    log-probabilities, and the exact mass of all others.
    """
    from compress import logits as room
    from compress.recipe.load import locate

    located = locate(recipe, sets or ())
    with progress.watching(quiet=quiet) as watch:
        made = room.export(
            located.recipe, out=out, top_k=top_k, device=found(device), threads=threads, watch=watch
        )
    told = {"folder": str(out), **dataclasses.asdict(made)}
    if json:
        console.emit_json(told)
    elif not quiet:
        told |= {
            "files": len(made.files), "bytes_per_token": f"{made.bytes_per_token:.1f}",
            "tail_mean": f"{made.tail_mean:.2%}",
        }  # fmt: skip
        console.show(console.fact_table(told))


def facts(made: Export) -> dict[str, Any]:
    """What an export has made, as plain facts by name."""
    found = made.difference
    told: dict[str, Any] = {
        "folder": str(made.folder),
        "format": made.format,
        "from": made.source_format,
        "size_bytes": made.size_bytes,
    }
    if found.exact:
        return {**told, "difference": f"none: {found.weights:,} weights bit-equal"}
    return {**told, "difference": dataclasses.asdict(found)}

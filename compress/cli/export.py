"""The command that writes an artifact in another format: `export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compress.cli import console
from compress.cli.apply import Json, Quiet

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

    with console.watching(quiet=quiet) as watch:
        made = room.export(folder, format=format, out=out, watch=watch)
    if json:
        console.emit_json({**facts(made), "exact": made.difference.exact})
    elif not quiet:
        console.show(console.fact_table(facts(made)))


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

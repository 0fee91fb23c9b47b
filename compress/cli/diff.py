"""The command `diff`: what differs between two artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.cli import console
from compress.cli.apply import Json

if TYPE_CHECKING:
    from compress.diff import Difference, Metric, Tensors

DIFFERENT = 1
_LISTED = 8  # names of tensors told one by one
_WIDTH = 60  # characters of one value
_HASH = 12  # characters of a sha256


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="The folder of a finished artifact.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    rehash: Annotated[
        bool,
        typer.Option("--rehash", help="Hash the files anew instead of believing the manifests."),
    ] = False,
    json: Json = False,
) -> None:
    """Say what differs between two artifacts.

    Recipe, tensors, metrics, environment. Identical means weights, config, tokenizer and lock;
    exits with 1 unless they are.
    """
    from compress.diff import compare

    found = compare(first, second, rehash=rehash)
    if json:
        console.emit_json(found.as_dict())
    else:
        _tell(found)
    if not found.identical:
        raise typer.Exit(DIFFERENT)


def verdict(found: Difference) -> str:
    """The first line: identical, or in what not."""
    if found.identical:
        return "Identical: weights, config, tokenizer and lock are the same bytes."
    tensors = found.tensors
    counts = {
        "file": len(found.files),
        "recipe field": len(found.recipe),
        "tensor": len(tensors.missing) + len(tensors.extra) + len(tensors.changed),
    }
    told = ", ".join(
        f"{count:,} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count
    )
    return f"Different: {told}."


def _tell(found: Difference) -> None:
    console.tell(verdict(found))
    by_manifest = 2 - len(found.hashed)
    if by_manifest:
        console.tell("As their manifests have it; --rehash reads the files themselves.")
    sections: dict[str, list[tuple[str, ...]]] = {
        "file": [(one.name, one.first[:_HASH], one.second[:_HASH]) for one in found.files],
        "recipe": [(one.name, _short(one.first), _short(one.second)) for one in found.recipe],
        "tensor": list(_tensor_rows(found.tensors)),
        "metric": [_metric_row(one) for one in found.metrics if one.difference != 0],
        "environment": [
            (one.name, _short(one.first), _short(one.second)) for one in found.environment
        ],
    }
    for title, rows in sections.items():
        if rows:
            console.show(console.comparison_table(title, rows))


def _tensor_rows(tensors: Tensors) -> list[tuple[str, ...]]:
    """Rows for tensors: the first few of each kind by name, the others counted."""
    rows: list[tuple[str, ...]] = []
    for kind, first, second in (
        ("missing", "there", "absent"),
        ("extra", "absent", "there"),
        ("changed", "", "changed"),
    ):
        names = getattr(tensors, kind)
        rows += [(name, first, second) for name in names[:_LISTED]]
        if len(names) > _LISTED:
            rows.append((f"and {len(names) - _LISTED:,} more", first, second))
    return rows


def _metric_row(one: Metric) -> tuple[str, ...]:
    difference = (
        f"not comparable: {one.note}" if one.difference is None else _signed(one.difference)
    )
    return one.name, _short(one.first), _short(one.second), difference


def _signed(value: float) -> str:
    return f"{value:+,}" if isinstance(value, int) else f"{value:+.4g}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= _WIDTH else text[:_WIDTH] + "…"

"""The commands that look at what is there: `inspect`, `report`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from compress import storage
from compress.cli import console
from compress.cli.apply import Json
from compress.errors import ArtifactError
from compress.results import Measured, Results, from_json

if TYPE_CHECKING:
    from compress.artifact.layout import Artifact

MADE_BY = (
    "recipe",
    "teacher",
    "teacher_fingerprint",
    "calibration",
    "calibration_fingerprint",
    "seed",
)
T = TypeVar("T")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run.")],
    json: Json = False,
) -> None:
    """Rebuild the pages of a finished run from what it found.

    report.html and report.md, from results.json and measured.json.
    """
    pages = [str(page) for page in rebuild(folder)]
    if json:
        console.emit_json({"pages": pages})
        return
    for page in pages:
        console.emit(page)


def rebuild(folder: Path) -> list[Path]:
    """Write both pages of a finished run anew.

    Raises:
        ArtifactError: `folder` holds no readable results.
    """
    from compress.report import pages

    results = _read(folder / "results.json", Results)
    times = folder / "measured.json"
    measured = _read(times, Measured) if times.is_file() else None
    return pages.write(folder, results, measured)


def inspect(
    folder: Annotated[
        Path,
        typer.Argument(metavar="ARTIFACT", help="The folder of a finished run, or of a model."),
    ],
    json: Json = False,
) -> None:
    """Show what a folder holds: format, bits, sizes, what made it.

    Read from headers alone, of any format that is written here, and of plain model folders.
    """
    from compress.artifact.layout import open_artifact

    found = describe(open_artifact(folder))
    if json:
        console.emit_json(found)
    else:
        console.show(console.fact_table(found))


def describe(artifact: Artifact) -> dict[str, Any]:
    """What a folder holds, as plain facts by name; read from headers alone."""
    anatomy = artifact.anatomy
    stored = Counter(_stored(artifact, linear.name) for linear in anatomy.linears)
    return {
        "folder": str(artifact.folder),
        "format": artifact.format,
        "model_type": anatomy.model_type,
        "blocks": len(anatomy.blocks),
        "hidden_size": anatomy.hidden_size,
        "vocab_size": anatomy.vocab_size,
        "weights": sum(artifact.parts_weights().values()),
        "linears": dict(stored.most_common()),
        "head": _stored(artifact, anatomy.embedding if anatomy.tied else anatomy.head.name),
        "tied": anatomy.tied,
        "bits_per_weight": round(artifact.bits_per_weight, 4),
        "size_bytes": artifact.size_bytes,
        "kv_cache": _cached(artifact),
        "kv_bytes_per_token": artifact.kv_bytes_per_token,
        "parts_bytes": artifact.parts_sizes(),
        **_made_by(artifact.folder),
    }


def _read(path: Path, kind: type[T]) -> T:
    try:
        return from_json(kind, storage.read_text(path))
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}). Give the folder of a finished run."
        ) from error
    except ValueError as error:
        raise ArtifactError(
            f"{path}: not what this version writes ({error}). Run the recipe again."
        ) from error


def _cached(artifact: Artifact) -> str:
    """How keys and values will be cached, in words."""
    scheme = artifact.cached
    return f"{scheme.numbers}, a scale each {scheme.granularity}" if scheme else "not rounded"


def _stored(artifact: Artifact, name: str) -> str:
    """How one linear is stored, in the words of a recipe."""
    from compress.artifact.formats.floats import kind_of

    if weights := artifact.pruned.get(name):
        return f"mask, {weights.kept} of {weights.columns} weights a row"
    matrix = artifact.matrices.get(name)
    if matrix is None:
        return "dense"
    scheme = matrix.scheme
    if kind := kind_of(scheme):
        return f"{kind}, group_size {scheme.group_size}"
    grid = f"{scheme.bits} bits, group_size {scheme.group_size}, {'sym' if scheme.sym else 'asym'}"
    return f"{grid}, mask and kept codes" if matrix.kept_words else grid


def _made_by(folder: Path) -> dict[str, Any]:
    """What results.json says of the run that made a folder; nothing where there is none."""
    path = folder / "results.json"
    if not path.is_file():
        return {}
    told = _read(path, Results).provenance
    return {name: getattr(told, name) for name in MADE_BY}

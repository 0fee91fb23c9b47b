"""The commands that look at what is there: `inspect`, `report`, `recipes`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from compress import library, storage
from compress.cli import completion, console
from compress.cli.apply import Json, RecipeName
from compress.errors import ArtifactError, RecipeError, RequestError
from compress.results import Measured, Results, from_json

if TYPE_CHECKING:
    from compress.artifact.layout import Artifact

recipes = typer.Typer(
    name="recipes", help="The recipes that ship with compress.", no_args_is_help=True
)
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


@recipes.command("ls")
def ls() -> None:
    """List the shipped recipes, one line each."""
    for name in library.names("recipes"):
        first = _text(_recipe(name)).partition("\n")[0]
        console.emit(
            f"{name:<20} {first.removeprefix('#').strip().removeprefix(name + ':').strip()}"
        )


@recipes.command("show")
def show(name: RecipeName, json: Json = False) -> None:
    """Print one recipe as it is written."""
    path = _recipe(name)
    if json:
        from compress.recipe.source import mapping

        console.emit_json({"name": path.stem, "recipe": mapping(path)})
    else:
        console.emit(_text(path))


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
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RequestError(f"{target}: exists and is not overwritten. Name another file.") from None
    except OSError as error:
        raise RequestError(f"{target}: cannot be written ({error.strerror}).") from error
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

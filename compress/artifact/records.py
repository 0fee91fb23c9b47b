"""The records that a run leaves beside its weights, as they are read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from compress import storage
from compress.errors import ArtifactError, RecipeError
from compress.recipe import source
from compress.results import from_json

LOCK = "recipe.lock.yaml"
T = TypeVar("T")


def lock(folder: Path) -> dict[str, Any]:
    """The locked recipe of an artifact as plain data; nothing where there is none.

    Raises:
        ArtifactError: it is no YAML that a recipe could be.
    """
    path = folder / LOCK
    if not path.is_file():
        return {}
    try:
        return source.mapping(path)
    except RecipeError as error:
        raise ArtifactError("\n".join(error.mistakes)) from error


def record(path: Path, kind: type[T]) -> T | None:
    """One record, as `results.json` or `measured.json`; None where there is none.

    Raises:
        ArtifactError: it holds something else, or another schema version.
    """
    if not path.is_file():
        return None
    try:
        return from_json(kind, storage.read_text(path))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: not what this version writes ({error}). Run the recipe again."
        ) from error

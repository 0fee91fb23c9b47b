"""The files of the user's that a recipe names: two runs are alike only where these are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from compress import library
from compress.recipe.schema import Recipe
from compress.recipe.source import mapping as mapping_of
from compress.recipe.suite import load_suite

_LONGEST = 200  # characters of a file's name; longer words describe something


def inputs(recipe: Recipe) -> dict[str, str]:
    """sha256 of every file of the user's that a recipe names: texts, suites."""
    texts = [recipe.calibration, *(spec.text for _, spec in recipe.distillations if spec.text)]
    names = [name for text in texts for name in text.sets]
    evaluate = recipe.evaluate
    names += [evaluate.text] if evaluate.text else []
    if evaluate.suite != "none":
        suite = load_suite(evaluate.suite)
        names += [evaluate.suite, suite.perplexity.set, suite.divergence.set]
    return {str(path): _file_sha256(path) for name in names for path in _files(name)}


def _files(name: str) -> Iterator[Path]:
    """The file that a name means where it is a path, and those beside one of YAML that it names."""
    if not library.is_path(name):
        return
    yield (path := Path(name).expanduser())
    if path.suffix in (".yaml", ".yml") and path.is_file():
        words = [one for one in mapping_of(path).values() if isinstance(one, str)]
        beside = [
            path.parent / one for one in words if len(one) < _LONGEST and library.is_path(one)
        ]
        yield from (one for one in beside if one.is_file())


def _file_sha256(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The files that a recipe names: two runs are alike only where these are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from compress import library
from compress.library import Kind
from compress.recipe.schema import Recipe
from compress.recipe.source import mapping as mapping_of
from compress.recipe.suite import load_suite

_LONGEST = 200  # characters of a file's name; longer words describe something


def inputs(recipe: Recipe) -> dict[str, str]:
    """sha256 of every file that a recipe names, by a path or by a shipped name.

    Those are texts, prompts, suites and tasks, and the files that these name in turn.
    """
    return {_key(path): _file_sha256(path) for path in _all(recipe)}


def _all(recipe: Recipe) -> Iterator[Path]:
    for text in (recipe.calibration, *(spec.text for _, spec in recipe.distillations if spec.text)):
        yield from (path for name in text.sets for path in _files("calib", name))
        if isinstance(text.prompts, str):  # a list holds the prompts themselves
            yield Path(text.prompts)
    if recipe.evaluate.text:
        yield from _files("calib", recipe.evaluate.text)
    if recipe.evaluate.suite == "none":
        return
    suite = load_suite(recipe.evaluate.suite)
    yield from _files("eval", recipe.evaluate.suite)
    for name in (suite.perplexity.set, suite.divergence.set):
        yield from _files("calib", name)
    tasks = library.folder("eval").parent / "tasks"
    for name in suite.tasks:
        yield from _with_named(tasks / f"{name}.yaml")


def _files(kind: Kind, name: str) -> Iterator[Path]:
    """The file that a path or a shipped name means, and those beside it that it names."""
    if library.is_path(name):
        return _with_named(Path(name).expanduser())
    return _with_named(library.folder(kind) / f"{name}.yaml")


def _with_named(path: Path) -> Iterator[Path]:
    """A file, and where it is one of YAML those beside it that it names."""
    yield path
    if path.suffix in (".yaml", ".yml") and path.is_file():
        words = [one for one in _words(mapping_of(path)) if len(one) < _LONGEST]
        beside = [path.parent / one for one in words if library.is_path(one)]
        yield from (one for one in beside if one.is_file())


def _words(data: object) -> Iterator[str]:
    """Every word of plain data, however deep."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        yield from (word for one in data.values() for word in _words(one))
    elif isinstance(data, list):
        yield from (word for one in data for word in _words(one))


def _key(path: Path) -> str:
    """What a file is known by: a shipped one by its place among what ships, wherever that is."""
    whole, root = path.resolve(), library.root()
    shipped = (root / folder for folder in ("calib", "eval"))
    if any(whole.is_relative_to(folder) for folder in shipped):
        return f"shipped:{whole.relative_to(root).as_posix()}"
    return str(path)


def _file_sha256(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

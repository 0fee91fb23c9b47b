"""A name or path and ``--set`` arguments → `Recipe`; or all mistakes, each with its line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from compress import library
from compress.errors import RecipeError
from compress.recipe.mistakes import belongs_to, describe, dotted
from compress.recipe.resolve import explicit
from compress.recipe.schema import Recipe, Resolved
from compress.recipe.sets import assign, spelled
from compress.recipe.source import MAX_BYTES, Loc, Mistake, Places, Source, read, text_of
from compress.recipe.stages import origins, written
from compress.recipe.suite import load_suite, unmeasured
from compress.recipe.sweep import Sweep

_NAMED: tuple[tuple[Loc, library.Kind], ...] = (
    (("calibration", "set"), "calib"),
    (("evaluate", "suite"), "eval"),
    (("evaluate", "text"), "calib"),
)
Given: TypeAlias = str | Path | Mapping[str, Any] | Recipe
UNNAMED = "recipe"  # one that was written in no file


@dataclass(frozen=True)
class Located:
    """A recipe, and where each part of it was written."""

    recipe: Recipe
    places: Places


def load(recipe: Given, sets: Sequence[str] = (), **changes: Any) -> Recipe:
    """Read a recipe, with some of its fields changed.

    Args:
        recipe: a shipped name; a path, which ends in .yaml or .yml or holds a separator; a mapping
            of what would stand in a file; or a recipe that was loaded already.
        sets: ``key=value`` overrides, such as ``quantize.bits=8`` or ``stages.0.quantize.bits=8``;
            values are YAML.
        changes: the same as nested mappings: ``quantize={"bits": 8}, calibration={"samples": 64}``.

    Raises:
        RecipeError: every mistake found, with its file and line or its ``--set`` argument.
    """
    return locate(recipe, sets, **changes).recipe


def locate(recipe: Given, sets: Sequence[str] = (), **changes: Any) -> Located:
    """Like `load`, keeping the places, so that mistakes found later can name their line too."""
    assignments = (*sets, *spelled(changes))
    if isinstance(recipe, Recipe):
        if not assignments:
            return Located(recipe, Places(recipe.resolved.recipe or UNNAMED))
        told = recipe.resolved.model_dump(mode="json", include={"recipe", "sets"})
        return _located(_written({**explicit(recipe), "resolved": told}), UNNAMED, assignments)
    if isinstance(recipe, Mapping):
        return _located(_written(recipe), UNNAMED, assignments)
    path = find(_argument(recipe))
    return _located(read(text_of(path), _display(path)), path.stem, assignments)


def _argument(recipe: str | Path) -> str:
    """A recipe as the command line names it; a `Path` is one, however short."""
    text = str(recipe)
    return f"./{text}" if isinstance(recipe, Path) and not library.is_path(text) else text


def _written(recipe: Mapping[str, Any]) -> Source:
    """A mapping as if it stood in a file, which has no lines."""
    source = read(json.dumps(recipe, ensure_ascii=False, default=str), UNNAMED)
    source.places.lines.clear()
    return source


def _located(source: Source, name: str, sets: Sequence[str]) -> Located:
    """Validate what was written, under its own name."""
    if not isinstance(source.data, dict):
        raise RecipeError(
            [f"{source.places.name}  holds no mapping. A recipe begins with version: 1."]
        )
    if fields := belongs_to(source.data, Sweep, Recipe):
        raise RecipeError(
            [f"{source.places.name}  is a sweep, by its {fields}. `compress sweep` takes it."]
        )
    mistakes = [*source.mistakes, *_assigned(source, sets)]
    recipe, more = _validated(source)
    if mistakes or more or recipe is None:
        raise RecipeError(
            [text for _, text in sorted([*mistakes, *more], key=lambda mistake: mistake[0])]
        )
    places = source.places.moved("stages", origins(source.data["stages"]))
    return Located(_named(recipe, name, sets), places)


def laid_over(argument: str, sets: Sequence[str]) -> dict[str, Any]:
    """A recipe's file as plain data with `sets` laid over it, and nothing else written out.

    Raises:
        RecipeError: as `load`.
    """
    locate(argument, sets)  # tells of all mistakes
    source = read(text_of(find(argument)), argument)
    for assignment in sets:
        assign(source, assignment)
    return dict(source.data)


def find(argument: str) -> Path:
    """The file of a recipe by its shipped name or its path.

    Raises:
        RecipeError: there is none.
    """
    try:
        return library.find("recipes", argument)
    except LookupError as error:
        raise RecipeError([str(error)]) from error


def _display(path: Path) -> str:
    working = Path.cwd()
    return str(path.relative_to(working) if path.is_relative_to(working) else path)


def _assigned(source: Source, sets: Sequence[str]) -> list[Mistake]:
    found: list[Mistake] = []
    for assignment in sets:
        try:
            assign(source, assignment)
        except RecipeError as error:
            found += [(MAX_BYTES, text) for text in error.mistakes]
    return found


def _validated(source: Source) -> tuple[Recipe | None, list[Mistake]]:
    """Validate. A line that could not be read has its mistake already and is not judged again."""
    unread = {line for line, _ in source.mistakes}
    mistakes = _unknown_names(source)
    try:
        recipe = Recipe.model_validate(source.data)
        return recipe, mistakes or _unmeasured(recipe, source.places)
    except ValidationError as error:
        mistakes += [
            mistake for mistake in describe(error, source.places) if mistake[0] not in unread
        ]
    return None, mistakes


def _unknown_names(source: Source) -> list[Mistake]:
    found = []
    places = [place for named in (*_NAMED, *_texts(source)) for place in _each(source, *named)]
    for loc, kind in places:
        value = _at(source.data, loc)
        if not isinstance(value, str) or not value or (kind, value) == ("eval", "none"):
            continue
        try:
            library.find(kind, value)
        except LookupError as error:
            text = f"{source.places.label(loc)}  {dotted(loc)}: {error}"
            found.append((source.places.order(loc), text))
    return found


def _texts(source: Source) -> list[tuple[Loc, library.Kind]]:
    """Where stages name texts of their own."""
    found = written(source.data.get("stages"))
    return [((*loc, "distill", "text", "set"), "calib") for loc, _ in found]


def _each(source: Source, loc: Loc, kind: library.Kind) -> list[tuple[Loc, library.Kind]]:
    """Where a place holds a list of names: the place of each."""
    value = _at(source.data, loc)
    if not isinstance(value, list):
        return [(loc, kind)]
    return [((*loc, number), kind) for number in range(len(value))]


def _at(data: Any, loc: Loc) -> Any:
    """What stands at a place of a recipe's data; None where nothing does."""
    for part in loc:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
        else:
            return None
    return data


def _unmeasured(recipe: Recipe, places: Places) -> list[Mistake]:
    """Gates for which the suite, which lies in a file of its own, takes no measurement."""
    evaluate = recipe.evaluate
    if evaluate.gates is None or not evaluate.gates.measured:
        return []
    found: list[tuple[Loc, str]] = [
        (("evaluate", "gates", name), text)
        for name, text in unmeasured(evaluate.gates, load_suite(evaluate.suite))
    ]
    return [
        (places.order(loc), f"{places.label(loc)}  {dotted(loc)}: {text}") for loc, text in found
    ]


def _named(recipe: Recipe, stem: str, sets: Sequence[str]) -> Recipe:
    """Record the name and the overrides."""
    name = recipe.resolved.recipe or stem
    if sets:  # what a lock had found does not hold for a changed recipe
        resolved = Resolved(recipe=name, sets=(*recipe.resolved.sets, *sets))
    else:
        resolved = recipe.resolved.model_copy(update={"recipe": name})
    return recipe.model_copy(update={"resolved": resolved})

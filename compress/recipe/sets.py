"""``--set key=value``: one value laid over a recipe's data, its place remembered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from compress.errors import RecipeError
from compress.library import nearest
from compress.recipe.mistakes import dotted
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc, Source, read, scalar
from compress.recipe.stages import Entry, written

_STAGES = tuple(Entry.model_fields)
_FIRST = (*(name for name in Recipe.model_fields if name != "resolved"), *_STAGES)


def assign(source: Source, assignment: str) -> None:
    """Lay one assignment over `source`.

    Keys are dotted. A stage is named by its index, ``stages.0.quantize.bits=8``, or by its name
    alone where the recipe has one such stage, ``quantize.bits=8``. Values are YAML, so sections and
    lists can be given whole.

    Raises:
        RecipeError: the assignment is no ``key=value``, or its key leads nowhere.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise _refused(assignment, "not of the form KEY=VALUE. For example --set quantize.bits=8.")
    value = _value(text, assignment)
    loc = _loc(source.data, assignment, key.strip())
    holder = _holder(source.data, assignment, loc)
    holder[loc[-1]] = value
    if loc in (("teacher", "model"), ("student", "model")):
        # These pins name a file of the model that the recipe had; for another they are wrong.
        holder.pop("revision", None)
        holder.pop("sha256", None)
    source.places.replace(loc, assignment)


def spelled(changes: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Nested changes as assignments, which a lock records alike: ``quantize.bits=8``.

    A mapping whose keys are no names, such as `overrides` by pattern, is one value.
    """
    # a model first: with it go the pins of the one before
    for name in sorted(changes, key=lambda name: name != "model"):
        value = changes[name]
        if isinstance(value, Mapping) and value and all(map(_is_name, value)):
            yield from spelled(value, f"{above}{name}.")
        else:
            yield f"{above}{name}={_text(value)}"


def _is_name(key: object) -> bool:
    return isinstance(key, str) and key.isidentifier()


def _text(value: object) -> str:
    """A value as YAML: plain where that is read as the same text, else JSON, which YAML holds."""
    text = str(value) if isinstance(value, PurePath) else value
    if isinstance(text, str) and re.fullmatch(r"[\w./~:=-]+", text) and scalar(text) == text:
        return text
    return json.dumps(text, ensure_ascii=False, default=str)


def _value(text: str, assignment: str) -> Any:
    try:
        value = read(text, "value")
    except RecipeError as error:
        raise _refused(assignment, *error.mistakes) from error
    if value.mistakes:
        raise _refused(assignment, *(message for _, message in value.mistakes))
    return value.data


def _loc(data: dict[str, Any], assignment: str, key: str) -> Loc:
    first, *rest = key.replace("[", ".").replace("]", "").split(".")
    if first in _STAGES:
        return (*_only_stage(data, assignment, first), first, *_numbered((first, *rest))[1:])
    if first not in _FIRST:
        guess = nearest(first, _FIRST)
        known = f"Did you mean {guess}?" if guess else f"Known: {', '.join(_FIRST)}."
        raise _refused(assignment, f"{first}: unknown field. {known}")
    return _numbered((first, *rest))


def _numbered(parts: tuple[str, ...]) -> Loc:
    """Parts of a key, those that follow a list of stages as numbers."""
    before = ("", *parts)
    return tuple(
        int(part) if last == "stages" and part.isdecimal() else part
        for last, part in zip(before, parts, strict=False)
    )


def _only_stage(data: dict[str, Any], assignment: str, name: str) -> Loc:
    listed = written(data.get("stages"))
    found = [loc for loc, stage in listed if isinstance(stage, dict) and name in stage]
    if len(found) != 1:
        places = [".".join(map(str, loc)) for loc in found]
        remedy = f"Choose one: {places[0]}.{name}.…" if found else "Add one to the recipe."
        raise _refused(
            assignment, f"{name}: the recipe has {len(found) or 'no'} such stages. {remedy}"
        )
    return found[0]


def _holder(data: dict[str, Any], assignment: str, loc: Loc) -> Any:
    """The list or mapping that holds the last part of `loc`; a section not yet there is begun."""
    holder: Any = data
    for depth, part in enumerate(loc):
        if isinstance(holder, list):
            fits = isinstance(part, int) and part < len(holder)
        else:
            fits = isinstance(holder, dict) and isinstance(part, str)
        if not fits:
            raise _refused(
                assignment,
                f"{dotted(loc[:depth])}: holds no {part}. docs/recipes.md lists all fields.",
            )
        if depth < len(loc) - 1:
            if isinstance(holder, dict) and holder.get(part) is None:
                holder[part] = {}
            holder = holder[part]
    return holder


def _refused(assignment: str, *texts: str) -> RecipeError:
    return RecipeError([f"--set {assignment}  {text}" for text in texts])

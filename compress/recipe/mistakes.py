"""What pydantic found wrong, said as this project says it: where, found, the rule, what to do."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from compress.library import nearest
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc, Mistake, Places

_KINDS = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "string_type": "text", "tuple_type": "a list",
    "dict_type": "a mapping", "model_type": "a mapping",
}  # fmt: skip
_BOUNDS = {
    "greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"), "less_than_equal": ("le", "at most"),
}  # fmt: skip


def describe(error: ValidationError, places: Places) -> list[Mistake]:
    """One message per mistake, each with a key that sorts it by its place."""
    details = error.errors()
    misspelt = {_meant(detail["loc"]) for detail in details if detail["type"] == "extra_forbidden"}
    return [
        (places.order(detail["loc"]), _message(detail, places))
        for detail in details
        if not _follows_from_another(detail, misspelt)
    ]


def dotted(loc: Loc) -> str:
    """Spell a location as a path: ``stages[0].quantize.bits``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _message(detail: Any, places: Places) -> str:
    loc = detail["loc"][:-1] if detail["loc"][-1:] == ("[key]",) else detail["loc"]
    path = dotted(loc)
    return f"{places.label(loc)}  {path + ': ' if path else ''}{_said(detail, loc)}"


def _said(detail: Any, loc: Loc) -> str:
    kind, context, found = detail["type"], detail.get("ctx", {}), _found(detail["input"])
    if kind == "value_error":  # raised by the schema, which says the rest itself
        return str(context["error"])
    if kind == "extra_forbidden":
        return f"unknown field. {_known(loc)}"
    if kind == "missing":
        return f"missing. {_example(loc)}"
    if kind == "literal_error":
        return f"{found}{_choices(detail['input'], loc)}"
    if kind in _KINDS:
        return f"{found} is not {_KINDS[kind]}. {_remedy(detail['input'], kind, loc)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{found} is out of range: must be {words} {context[name]}. {_example(loc)}"
    if kind == "string_pattern_mismatch":
        return f"{found} does not have the right form. {_field(loc).description}"
    if kind in ("too_short", "string_too_short"):
        return f"{found} is empty. {_example(loc)}"
    return f"{found}: {detail['msg']}. docs/recipes.md lists what is possible."


def _follows_from_another(detail: Any, misspelt: set[Loc]) -> bool:
    """A misspelt field is not also missing; a list with wrong entries is not also too short."""
    missing = detail["type"] == "missing" and detail["loc"] in misspelt
    return missing or (detail["type"] == "too_short" and bool(detail["input"]))


def _found(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _meant(loc: Loc) -> Loc:
    """The field that a misspelt one stands for, as far as can be told."""
    guess = nearest(str(loc[-1]), _model(loc[:-1]).model_fields)
    return (*loc[:-1], guess) if guess else loc


def _known(loc: Loc) -> str:
    fields = _model(loc[:-1]).model_fields
    if (meant := _meant(loc)) != loc:
        return f"Did you mean {meant[-1]}?"
    homes = (name for name, section in _sections(Recipe) if loc[-1] in section.model_fields)
    if home := next(homes, None):
        return f"It belongs in {home}."
    return f"Known here: {', '.join(fields)}."


def _choices(value: Any, loc: Loc) -> str:
    allowed = _literals(_field(loc).annotation)
    if len(allowed) == 1:
        return f", must be {_found(allowed[0])}."
    words = [choice for choice in allowed if isinstance(choice, str)]
    guess = nearest(value, words) if isinstance(value, str) else None
    hint = f" Did you mean {guess}?" if guess else ""
    return f" is not one of {', '.join(map(str, allowed))}.{hint}"


def _remedy(value: Any, kind: str, loc: Loc) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'Quote it: "{_found(value)}".'
    if kind == "tuple_type":
        return "Put it in brackets: [ … ]."
    return _example(loc)


def _example(loc: Loc) -> str:
    model, field = _walk(loc)
    if kind := next(_models(field.annotation), None):
        return f"Fields: {', '.join(kind.model_fields)}."
    value = field.examples[0] if field.examples else field.default
    shown = value if isinstance(value, str) else json.dumps(value)
    return (
        f"For example {loc[-1]}: {shown}"
        if loc[-1] in model.model_fields
        else "Write a name or a pattern."
    )


def _model(loc: Loc) -> type[BaseModel]:
    return _walk(loc)[0]


def _field(loc: Loc) -> FieldInfo:
    return _walk(loc)[1]


def _walk(loc: Loc) -> tuple[type[BaseModel], FieldInfo]:
    """The model and field that a location leads to; what a list or mapping holds counts as it."""
    model: type[BaseModel] = Recipe
    field = FieldInfo(annotation=Recipe)
    in_mapping = False
    for part in loc:
        if isinstance(part, int) or in_mapping:
            in_mapping = False
            continue
        field = model.model_fields[part]
        in_mapping = typing.get_origin(field.annotation) is dict
        model = next(_models(field.annotation), model)
    return model, field


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for argument in typing.get_args(annotation) for choice in _literals(argument)]


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield name, inner
            yield from _sections(inner)

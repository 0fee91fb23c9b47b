"""What pydantic found wrong, said as this project says it: where, found, the rule, what to do."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from compress.library import nearest
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc, Mistake, Places

_JUDGED = 500  # mistakes of one recipe; looking for the nearest name takes a while each
_KINDS = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "string_type": "text", "tuple_type": "a list",
    "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
}  # fmt: skip
_BOUNDS = {
    "greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"), "less_than_equal": ("le", "at most"),
}  # fmt: skip


def describe(
    error: ValidationError, places: Places, root: type[BaseModel] = Recipe
) -> list[Mistake]:
    """One message per mistake, each with a key that sorts it by its place.

    Args:
        error: from validating what `places` tells the places of.
        places: where each part was written.
        root: the model that was validated.
    """
    details = error.errors()[:_JUDGED]
    found = _told_once(_causes([(_spot(root, detail), detail) for detail in details]))
    return [
        (places.order(spot.loc), f"{places.label(spot.loc)}  {spot.path()}{_said(detail, spot)}")
        for spot, detail in found
    ]


def belongs_to(data: Mapping[str, Any], other: type[BaseModel], ours: type[BaseModel]) -> str:
    """The fields, listed, by which a file is one of another kind; "" where it is, or may be, ours.

    Args:
        data: what the file says.
        other: the model of the other kind.
        ours: the model that it is to be read as.
    """
    shared = other.model_fields.keys() & ours.model_fields.keys()
    if data.keys() & (ours.model_fields.keys() - shared):
        return ""
    needed = (name for name, field in other.model_fields.items() if field.is_required())
    return ", ".join(name for name in needed if name in data and name not in shared)


def dotted(loc: Loc) -> str:
    """Spell a location as a path: ``stages[0].quantize.bits``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


@dataclass(frozen=True)
class _Spot:
    """One location in a model, and what the model says of it."""

    root: type[BaseModel]
    loc: Loc

    def path(self) -> str:
        return f"{dotted(self.loc)}: " if self.loc else ""

    def section(self) -> type[BaseModel]:
        """The model that holds the last part of the location."""
        return self._walk(self.loc[:-1])[0]

    def field(self) -> FieldInfo:
        """The field at the location; what a list or mapping holds counts as that field."""
        return self._walk(self.loc)[1]

    def known(self) -> bool:
        """Whether the location is one of the model's."""
        try:
            self.field()
        except KeyError:
            return False
        return True

    def meant(self) -> Loc:
        """The field that a misspelt one stands for, as far as can be told."""
        guess = nearest(str(self.loc[-1]), self.section().model_fields)
        return (*self.loc[:-1], guess) if guess else self.loc

    def _walk(self, loc: Loc) -> tuple[type[BaseModel], FieldInfo]:
        model, field, in_mapping = self.root, FieldInfo(annotation=self.root), False
        for part in loc:
            if isinstance(part, int) or in_mapping:
                in_mapping = False
                continue
            field = model.model_fields[part]
            in_mapping = typing.get_origin(field.annotation) is dict
            model = next(_models(field.annotation), model)
        return model, field


def _spot(root: type[BaseModel], detail: Any) -> _Spot:
    """Where it is, without what pydantic puts between fields: which of the types a field may have.

    Only a field that nothing knows has a name that no model has.
    """
    spot, unknown = _Spot(root, ()), detail["type"] == "extra_forbidden"
    for at, part in enumerate(detail["loc"], start=1):
        longer = _Spot(root, (*spot.loc, part))
        if (unknown and at == len(detail["loc"])) or longer.known():
            spot = longer
    return spot


def _causes(found: list[tuple[_Spot, Any]]) -> list[tuple[_Spot, Any]]:
    """What does not follow from something else that is wrong.

    A misspelt field is not also missing; a list with wrong entries is neither too short nor of the
    other type that its field may have.
    """
    misspelt = {spot.meant() for spot, detail in found if detail["type"] == "extra_forbidden"}
    holding = {spot.loc[:end] for spot, _ in found for end in range(len(spot.loc))}
    return [
        (spot, detail)
        for spot, detail in found
        if not (detail["type"] == "missing" and spot.loc in misspelt)
        and not (detail["type"] in (*_KINDS, "too_short") and spot.loc in holding)
    ]


def _told_once(found: list[tuple[_Spot, Any]]) -> list[tuple[_Spot, Any]]:
    """Of what is wrong for each type that a field may have: what fits the type that was given."""
    kept: dict[Loc, tuple[_Spot, Any]] = {}
    for spot, detail in found:
        fits = isinstance(detail["input"], str) == (detail["type"] == "literal_error")
        if spot.loc not in kept or fits:
            kept[spot.loc] = (spot, detail)
    return list(kept.values())


def _said(detail: Any, spot: _Spot) -> str:
    kind, context, found = detail["type"], detail.get("ctx", {}), _found(detail["input"])
    if kind == "value_error":  # raised by the schema, which says the rest itself
        return str(context["error"])
    if kind == "extra_forbidden":
        return f"unknown field. {_known(spot)}"
    if kind == "missing":
        return f"missing. {_example(spot)}"
    if kind == "literal_error":
        return f"{found}{_choices(detail['input'], spot.field())}"
    if kind in _KINDS:
        return f"{found} is not {_KINDS[kind]}. {_remedy(detail['input'], kind, spot)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{found} is out of range: must be {words} {context[name]}. {_example(spot)}"
    if kind == "string_pattern_mismatch":
        return f"{found} does not have the right form. {spot.field().description}"
    if kind == "too_short" and typing.get_origin(spot.field().annotation) is dict:
        section, example = spot.loc[-2], (spot.field().examples or [""])[0]
        return f"{found} is empty. Give at least one value, as in {section}: {example}"
    if kind in ("too_short", "string_too_short"):
        return f"{found} is empty. {_example(spot)}"
    if kind == "too_long":
        return f"{found} holds more than {context['max_length']}. {_example(spot)}"
    return f"{found}: {detail['msg']}. {_example(spot)}"


def _found(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _known(spot: _Spot) -> str:
    if (meant := spot.meant()) != spot.loc:
        return f"Did you mean {meant[-1]}?"
    for model in (spot.section(), spot.root):
        homes = (name for name, inner in _sections(model) if spot.loc[-1] in inner.model_fields)
        if inside := list(dict.fromkeys(homes)):
            return f"It belongs in {' or '.join(inside if model is not spot.root else inside[:1])}."
    return f"Known here: {', '.join(spot.section().model_fields)}."


def _choices(value: Any, field: FieldInfo) -> str:
    allowed = _literals(field.annotation)
    others = [example for example in field.examples or () if example not in allowed]
    other = f", or like {others[0]}" if others else ""  # of a field that takes more than words
    if len(allowed) == 1:
        return f", must be {_found(allowed[0])}{other}."
    words = [choice for choice in allowed if isinstance(choice, str)]
    guess = nearest(value, words) if isinstance(value, str) else None
    hint = f" Did you mean {guess}?" if guess else ""
    return f" is not one of {', '.join(map(str, allowed))}{other}.{hint}"


def _remedy(value: Any, kind: str, spot: _Spot) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'Quote it: "{_found(value)}".'
    if kind in ("tuple_type", "list_type"):
        return "Put it in brackets: [ … ]."
    return _example(spot)


def _example(spot: _Spot) -> str:
    field, name = spot.field(), next((part for part in spot.loc[::-1] if isinstance(part, str)), "")
    if kind := next(_models(field.annotation), None):
        return f"Fields: {', '.join(kind.model_fields)}."
    if name not in spot.section().model_fields:
        return "Write text."  # an entry of a list of names or patterns
    if field.is_required() and not field.examples:
        return str(field.description) if name == spot.loc[-1] else "Write text."
    value = field.examples[0] if field.examples else field.default
    return f"For example {name}: {value if isinstance(value, str) else json.dumps(value)}"


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

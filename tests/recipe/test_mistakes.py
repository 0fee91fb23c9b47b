"""Whatever a field is given, what is wrong with it is told, and told where it is."""

from __future__ import annotations

import typing

import pytest
from pydantic import BaseModel, ValidationError

from compress.recipe.mistakes import describe, dotted
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.stages import Stage

WHOLE = {
    "version": 1, "teacher": {"model": "m"}, "stages": [{"quantize": {"method": "rtn", "bits": 4}}],
    "artifact": {"format": "packed"},
}  # fmt: skip
JUNK = (
    None, True, -1, 0, 1.5, 10**30, "", "x", [], [3], ["x", 3], [[0]], [[-1, 2]], [[0, 1, 2]],
    [[0, 1.5]], {}, {"x": 1}, {"x": {"x": [3]}}, {3: 4},
)  # fmt: skip


def models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models(argument)


def fields(model, loc=()):
    """Where every field of a model is, those inside its fields too, once."""
    for name, field in model.model_fields.items():
        yield (*loc, name)
        for inner in models(field.annotation):
            if issubclass(inner, Stage):
                yield from () if "repeat" in loc else fields(inner, (*loc, name, 0))
            else:
                yield from fields(inner, (*loc, name))


PLACES = list(dict.fromkeys(fields(Recipe)))


def given(loc, value):
    for part in reversed(loc):
        value = [value] if isinstance(part, int) else {part: value}
    return value


def told(recipe):
    """What is said of a recipe; None where it is taken."""
    try:
        Recipe.model_validate({**WHOLE, **recipe})
    except ValidationError as error:
        return [text for _, text in describe(error, Places("a.yaml"))]
    return None


@pytest.mark.parametrize("loc", PLACES, ids=dotted)
def test_whatever_a_field_is_given_is_taken_or_refused_in_words(loc):
    for value in JUNK:
        found = told(given(loc, value))
        assert found != []
        assert all(mistake.startswith("a.yaml  ") for mistake in found or ())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[-1, 2]], "blocks[0][0]: -1 is out of range: must be at least 0."),
        ([[0, 1, 2]], "blocks[0]: [0, 1, 2] holds more than 2."),
        ([[3, 7], [0]], "blocks[1][1]: missing."),
        ([[0, 1.5]], "blocks[0][1]: 1.5 is not a whole number."),
        ([[True, 1]], "blocks[0][0]: true is not a whole number."),
    ],
)
def test_a_wrong_block_map_names_the_entry_and_shows_a_right_one(value, said):
    where = ("stages", 0, "distill", "loss", "hidden")
    (mistake,) = told(given((*where, "blocks"), value))
    assert mistake.startswith(f"a.yaml  {dotted(where)}.{said}")
    assert mistake.endswith("For example blocks: [[3, 7], [7, 15]]")


def test_what_a_wrong_field_decides_is_not_wrong_too():
    config = {"config": {"num_hidden_layers": 0}, "seed": 3}
    (mistake,) = told({"student": config})
    assert mistake.startswith("a.yaml  student.config.num_hidden_layers: 0 is out of range")

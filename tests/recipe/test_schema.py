from __future__ import annotations

import typing

import pytest
from pydantic import ValidationError

from compress.recipe import methods, quantize
from compress.recipe.schema import Artifact, Recipe, Stage, json_schema

LEAST = {"version": 1, "teacher": {"model": "a/b"}, "stages": [{"quantize": {}}]}


def test_a_recipe_cannot_be_changed():
    recipe = Recipe.model_validate(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.version = 2


def test_sizes_of_shards_are_decimal_units():
    sizes = {size: Artifact(max_shard_size=size).max_shard_bytes for size in ("2 GB", "500MB")}
    assert sizes == {"2 GB": 2 * 10**9, "500MB": 500 * 10**6}


def test_the_seed_of_a_recipe_is_that_of_its_calibration():
    assert Recipe.model_validate({**LEAST, "calibration": {"seed": 7}}).seed == 7


def test_every_field_says_what_it_means():
    for model in (Recipe, Stage, quantize.Quantize, *_inner(Recipe)):
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def _inner(model):
    return [
        field.annotation
        for field in model.model_fields.values()
        if hasattr(field.annotation, "model_fields")
    ]


def test_the_json_schema_refuses_what_the_recipe_refuses():
    schema = json_schema()
    assert all(model["additionalProperties"] is False for model in schema["$defs"].values())
    assert schema["additionalProperties"] is False
    bits = schema["$defs"]["Quantize"]["properties"]["bits"]
    assert bits["enum"] == list(typing.get_args(quantize.Bits))


def test_fields_of_one_method_are_fields_of_the_stage():
    assert set(methods.GPTQ_ONLY) <= set(quantize.Quantize.model_fields)
    assert set(quantize.PRESETS) == set(typing.get_args(quantize.Preset))

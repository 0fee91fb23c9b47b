"""Recipes of fp8, nvfp4 and mxfp4."""

from __future__ import annotations

import typing

import pytest
from pydantic import ValidationError

from compress.recipe.methods import ACTIVATIONS, FLOATS, USED_BY, Method
from compress.recipe.quantize import Quantize
from compress.recipe.schema import Recipe
from compress.recipe.scheme import head_scheme, scheme_for

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("fields", "bits", "group_size", "activations"),
    [
        ({"method": "fp8"}, 8, -1, "dynamic"),
        ({"scheme": "FP8"}, 8, -1, "static"),
        ({"scheme": "FP8_BLOCK"}, 8, 128, "dynamic"),
        ({"method": "fp8", "strategy": "block", "activations": "none"}, 8, 128, "none"),
        ({"scheme": "NVFP4A16"}, 4, 16, "none"),
        ({"scheme": "NVFP4"}, 4, 16, "static"),
        ({"method": "mxfp4"}, 4, 32, "none"),
        ({"scheme": "MXFP4"}, 4, 32, "dynamic"),
    ],
)
def test_the_method_decides_the_numbers(fields, bits, group_size, activations):
    scheme = scheme_for(Quantize(**fields), Q)
    assert (scheme.bits, scheme.group_size, scheme.activations) == (bits, group_size, activations)
    assert scheme.floating
    assert scheme.sym
    assert scheme.scale_search == "mse"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scheme": "FP8", "method": "gptq"}, "gptq contradicts scheme FP8, which means fp8. Le"),
        ({"scheme": "W4A16", "method": "fp8"}, "fp8 contradicts scheme W4A16, which means gptq o"),
        ({"scheme": "FP8", "activations": "none"}, "none contradicts scheme FP8, which means st"),
        ({"method": "nvfp4", "bits": 8}, "8 contradicts method nvfp4, which means 4. Leave out"),
        ({"method": "fp8", "group_size": 64}, "64 contradicts method fp8, which means -1. Leave"),
        ({"method": "nvfp4", "head": 8}, "8 contradicts method nvfp4, which means 4. Leave out"),
        ({"method": "nvfp4", "activations": "dynamic"}, "nvfp4 does not know dynamic. Use none or"),
        (
            {"strategy": "block"},
            "gptq does not use this field. Leave it out, or choose method: fp8",
        ),
        ({"method": "mxfp4", "desc_act": True}, "mxfp4 does not use this field. Leave it out, or"),
        ({"method": "rtn", "activations": "none"}, "rtn does not use this field. Leave it out"),
        ({"group_size": 16}, "16 is the group of nvfp4 alone. Use 32, 64, 128 or -1."),
        (
            {"method": "w8a8", "overrides": {"*": {"scale_search": "hessian"}}},
            r"\*: scale_search: w8a8 does not use hessian. Leave it out.",
        ),
        (
            {"method": "llm_int8", "overrides": {"*": {"scale_search": "mse"}}},
            r"\*: scale_search: mse contradicts method llm_int8, which means none.",
        ),
        ({"overrides": {"*": {"group_size": 16}}}, r"\*: 16 is the group of nvfp4 alone."),
        (
            {"method": "fp8", "overrides": {"*": {"bits": 4, "sym": False}}},
            r"\*: fp8 leaves no choice of bits and sym. Give these linears a stage of their own.",
        ),
    ],
)
def test_what_contradicts_the_numbers_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told):
        Quantize(**fields)


def test_what_agrees_with_the_numbers_may_be_said():
    assert Quantize(method="nvfp4", bits=4, group_size=16, sym=True, head=4).head == 4
    assert Quantize(method="fp8", overrides={"*.q_proj": {"scale_search": "none"}}).bits == 8


def test_a_head_gets_the_same_numbers():
    assert head_scheme(Quantize(method="fp8", head=8)).floating


def test_only_what_looks_at_inputs_needs_calibration():
    needing = {"FP8", "NVFP4"}
    for name in ("FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4"):
        assert Quantize(scheme=name).needs_calibration is (name in needing)
    assert Quantize(method="nvfp4", scale_search="hessian").needs_calibration


def test_tables_name_methods_and_fields_that_there_are():
    methods = set(typing.get_args(Method))
    assert set(FLOATS) == set(ACTIVATIONS) <= methods
    assert set(USED_BY) <= set(Quantize.model_fields)
    assert {method for users in USED_BY.values() for method in users} <= methods


def test_a_gate_cannot_give_floating_numbers_more_bits():
    found = {
        "version": 1,
        "teacher": {"model": "a/b"},
        "stages": [{"quantize": {"scheme": "NVFP4A16"}}],
        "evaluate": {"gates": {"kl_mean_max": 0.1, "on_violation": "escalate"}},
    }
    with pytest.raises(ValidationError, match=r"stages\[0\] rounds to floating numbers"):
        Recipe.model_validate(found)
    found["evaluate"]["gates"]["on_violation"] = "fail"
    assert Recipe.model_validate(found).evaluate.gates.kl_mean_max == 0.1

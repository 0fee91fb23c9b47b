from __future__ import annotations

import pytest

from compress.recipe.methods import FIXED, PRESETS
from compress.recipe.patterns import matches
from compress.recipe.quantize import Quantize
from compress.recipe.scheme import head_scheme, override_for, scheme_for

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj"


@pytest.mark.parametrize(
    ("pattern", "name", "named"),
    [
        ("*", Q, True),
        ("*.q_proj", Q, True),
        ("q_proj", Q, False),  # names are compared whole
        ("model.layers.1.*", DOWN, False),
        ("model.layers.*", DOWN, True),
        ("re:.*q_proj", Q, True),
        ("re:q_proj", Q, False),  # from the start
        (r"re:model\.layers\.1\d", DOWN, True),  # not to the end
        ("Linear", Q, True),
        (Q, Q, True),
        ("*.Q_PROJ", Q, False),
    ],
)
def test_patterns_name_linears_as_in_llm_compressor(pattern, name, named):
    assert matches(pattern, name) is named


def test_a_linear_gets_the_fields_of_its_stage():
    scheme = scheme_for(Quantize(bits=3, group_size=32, damp_percent=0.1), Q)
    assert (scheme.bits, scheme.group_size, scheme.damp_percent) == (3, 32, 0.1)
    assert scheme.needs_hessian


def test_ignored_and_untargeted_linears_stay_dense():
    quantize = Quantize(targets=("*_proj",), ignore=("*.0.*",))
    assert scheme_for(quantize, Q) is None
    assert scheme_for(quantize, DOWN) is not None
    assert scheme_for(quantize, "model.layers.1.mlp.fc1") is None


def test_the_first_override_that_names_a_linear_decides_alone():
    quantize = Quantize(overrides={"*.q_proj": {"bits": 8}, "*proj": {"bits": 2, "group_size": 32}})
    assert override_for(quantize, Q) == "*.q_proj"
    assert (scheme_for(quantize, Q).bits, scheme_for(quantize, Q).group_size) == (8, 64)
    assert (scheme_for(quantize, DOWN).bits, scheme_for(quantize, DOWN).group_size) == (2, 32)


def test_the_head_is_decided_by_its_own_field():
    assert head_scheme(Quantize()) is None
    assert head_scheme(Quantize(head=8, overrides={"*": {"bits": 2}})).bits == 8


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_means_its_fields(name):
    quantize = Quantize(scheme=name)
    assert {field: getattr(quantize, field) for field in PRESETS[name]} == PRESETS[name]
    if quantize.method not in FIXED:  # the one field that may differ
        assert Quantize(scheme=name, group_size=32).group_size == 32


def test_rounding_to_nearest_needs_no_calibration_unless_asked_to():
    assert not Quantize(method="rtn").needs_calibration
    assert not scheme_for(Quantize(method="rtn"), Q).needs_hessian
    assert Quantize(method="rtn", scale_search="hessian").needs_calibration
    assert Quantize(method="rtn", overrides={"*": {"scale_search": "hessian"}}).needs_calibration
    assert Quantize(scale_search="none").needs_calibration  # gptq always does


@pytest.mark.parametrize(
    ("fields", "method"),
    [({"method": "w8a8"}, "rtn"), ({"method": "w8a8", "solver": "gptq"}, "gptq"),
     ({"method": "llm_int8", "outliers": "static"}, "rtn"), ({"method": "fp8"}, "fp8")],
)  # fmt: skip
def test_the_inputs_of_a_head_are_never_rounded(fields, method):
    scheme = head_scheme(Quantize(head=8, **fields))
    assert (scheme.method, scheme.bits) == (method, 8)
    assert (scheme.int8_inputs, scheme.activations) == (False, "none")

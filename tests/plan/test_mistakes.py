"""Recipes against models: what cannot work is told before anything runs."""

from __future__ import annotations

import pytest
from anatomies import gpt2, llama

from compress import plan
from compress.errors import RecipeError
from compress.recipe.load import load, locate


def mistakes(*sets: str, anatomy=None) -> list[str]:
    """What is wrong with quickstart under these overrides, without the places."""
    with pytest.raises(RecipeError) as caught:
        plan.check(load("quickstart", sets), anatomy or llama())
    return [mistake.removeprefix("recipe  ") for mistake in caught.value.mistakes]


def test_a_recipe_that_fits_passes():
    plan.check(load("quickstart"), llama())
    plan.check(load("quickstart", ["quantize.ignore=[lm_head]"]), llama())
    plan.check(load("w4g64-gptq-head8"), llama())
    plan.check(load("quickstart", ["quantize.group_size=-1"]), gpt2())


def test_a_group_size_that_does_not_divide_names_all_linears_once_and_offers_sizes():
    assert mistakes("quantize.group_size=128") == [
        "stages[0].quantize.group_size: 128 does not divide in_features 576 of "
        "model.layers.0.self_attn.q_proj and 179 more linears (30 q_proj, 30 k_proj, 30 v_proj, "
        "30 o_proj, 30 gate_proj, 30 up_proj). Use 32 or 64, or -1 for one scale per row."
    ]


def test_every_width_that_fails_is_told_and_only_sizes_that_fit_all_are_offered():
    (mistake,) = mistakes(anatomy=llama(width=96, hidden=100, blocks=1))
    assert (
        "64 does not divide in_features 96 of model.layers.0.self_attn.q_proj and 5 more" in mistake
    )
    assert ", 100 of model.layers.0.mlp.down_proj. Use -1 for one scale per row." in mistake


def test_an_override_answers_for_its_own_group_size():
    (mistake,) = mistakes("quantize.overrides={'*.q_proj': {group_size: 128}}")
    assert mistake.startswith("stages[0].quantize.overrides.*.q_proj.group_size: 128 does not")
    assert "and 29 more linears (30 q_proj)" in mistake


def test_the_head_must_divide_too():
    (mistake,) = mistakes(
        "quantize.head=8", "quantize.group_size=128", "quantize.targets=['*.down_proj']"
    )
    assert "128 does not divide in_features 576 of lm_head. Use 32 or 64" in mistake


def test_mistakes_name_the_line_or_the_override():
    located = locate("w4g64-gptq", ["quantize.group_size=128"])
    with pytest.raises(RecipeError, match=r"^--set quantize.group_size=128  stages\[0\]"):
        plan.check(located.recipe, llama(), located.places)
    located = locate("w4g128-gptq")
    with pytest.raises(RecipeError, match=r"w4g128-gptq.yaml:11  stages\[0\].quantize.group_size"):
        plan.check(located.recipe, llama(), located.places)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("quantize.targets=['*.q_proj', foo]", "targets[1]: 'foo' matches no linear. Names end in"),
        ("quantize.targets=['*', lm_head]", "targets[1]: 'lm_head' names the head, which is no bl"),
        ("quantize.ignore=[down_proj]", "ignore[0]: 'down_proj' matches no linear. Names end in"),
        ("quantize.overrides={'*.fc1': {bits: 8}}", "overrides.*.fc1: '*.fc1' matches no linear."),
        ("quantize={ignore: ['*.q_proj'], overrides: {'*.q_proj': {bits: 8}}}",
         "overrides.*.q_proj: '*.q_proj' matches no linear. Names end in *.k_proj"),
        ("quantize.overrides={'*': {bits: 8}, '*.q_proj': {bits: 4}}",
         "overrides.*.q_proj: decides nothing: patterns above it name the same linears. Move it"),
        ("quantize.ignore=['*']", ": leaves every linear dense. Widen targets or shorten ignore."),
    ],
)  # fmt: skip
def test_patterns_that_do_nothing_are_told(assignment, expected):
    (mistake,) = mistakes(assignment)
    assert mistake.startswith(f"stages[0].quantize{'' if expected[0] == ':' else '.'}{expected}")


def test_a_linear_is_quantized_once():
    (mistake,) = mistakes("stages=[{quantize: {}}, {quantize: {targets: ['*.down_proj']}}]")
    assert mistake == (
        "stages[1].quantize: model.layers.0.mlp.down_proj and 29 more linears (30 down_proj): "
        "already quantized by stages[0]. Narrow the targets of one."
    )


CT = "artifact.format=compressed-tensors"


def test_compressed_tensors_holds_no_quantized_tied_head():
    (mistake,) = mistakes(CT, "quantize.head=8")
    assert "head: 8 bits, but model.embed_tokens is the head too" in mistake
    plan.check(load("quickstart", [CT, "quantize.head=8"]), llama(tied=False))


def test_compressed_tensors_needs_one_scheme_for_what_engines_fuse():
    (mistake,) = mistakes(CT, "quantize.overrides={'*.q_proj': {bits: 8}}")
    assert "(1 q_proj, 1 k_proj, 1 v_proj) get unequal schemes, and so in 29 more" in mistake
    (mistake,) = mistakes(CT, "quantize.ignore=['model.layers.3.mlp.up_proj']")
    assert "model.layers.3.mlp.gate_proj and 1 more linear (1 gate_proj, 1 up_proj) get" in mistake
    plan.check(load("quickstart", [CT, "quantize.overrides={'*.down_proj': {bits: 8}}"]), llama())


def test_compressed_tensors_holds_no_transposed_weights():
    (mistake,) = mistakes(CT, anatomy=gpt2())
    assert "holds no Conv1D, which transformer.h.0.attn.c_attn and 3 more linears" in mistake


def test_what_gptq_and_gguf_cannot_hold_is_a_mistake_of_the_recipe():
    (mistake,) = mistakes("artifact.format=gptq", "quantize.sym=false")
    assert mistake.startswith("artifact.format: gptq: model.layers.0.self_attn.q_proj and 209 more")
    assert "an asymmetric grid; version 1 stores zero - 1" in mistake
    (mistake,) = mistakes("artifact.format=gguf", anatomy=gpt2())
    assert "gguf: gpt2: written are llama, mistral, qwen2, qwen3" in mistake
    recipe = load("quickstart", ["artifact.format=gguf"])
    plan.check(recipe, llama())
    with pytest.raises(RecipeError, match="gguf: the rotation yarn"):
        plan.check(recipe, llama(), config={"rope_scaling": {"type": "yarn"}})


def test_a_block_of_fp8_must_divide_the_widths():
    with pytest.raises(RecipeError) as caught:
        plan.check(load("fp8", ["quantize.scheme=FP8_BLOCK"]), llama())
    (mistake,) = caught.value.mistakes
    assert (
        "stages[0].quantize.strategy: block needs in_features that 128 divides, not 576 of "
        "model.layers.0.self_attn.q_proj and 179 more"
    ) in mistake
    assert mistake.endswith("Use strategy: channel.")
    plan.check(load("fp8", ["quantize.scheme=FP8_BLOCK"]), llama(width=512, hidden=1024))


def test_a_group_of_four_bit_floats_must_divide_the_widths():
    with pytest.raises(RecipeError) as caught:
        plan.check(load("nvfp4"), llama(width=64, hidden=72))
    (mistake,) = caught.value.mistakes
    assert "stages[0].quantize.method: nvfp4 needs in_features that 16 divides, not 72" in mistake
    assert mistake.endswith("Put them on ignore.")

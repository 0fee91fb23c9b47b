"""The stage `prune` before a run: what cannot work, what is told, what it will take."""

from __future__ import annotations

import pytest
from anatomies import headers, job, llama

from compress import plan
from compress.errors import RecipeError
from compress.plan import budget, memory, overview, work
from compress.plan.consumers import consumers
from compress.recipe.load import load
from compress.results import Limits


def recipe(*stages: str, **artifact: str):
    sets = [f"stages=[{', '.join(stages)}]", "calibration.set=smoke"]
    return load(
        "quickstart", [*sets, *(f"artifact.{key}={value}" for key, value in artifact.items())]
    )


def mistakes(*stages: str, anatomy=None, **artifact: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plan.check(recipe(*stages, **artifact), anatomy or llama())
    return [mistake.partition("  ")[2] for mistake in caught.value.mistakes]


HALF = "{prune: {sparsity: 0.5}}"
W4 = "{quantize: {bits: 4}}"


def test_what_fits_passes():
    plan.check(recipe(HALF), llama())
    plan.check(recipe(HALF, W4), llama())
    plan.check(recipe("{prune: {pattern: '2:4', quantize: {bits: 4}}}"), llama())
    plan.check(recipe(HALF, format="compressed-tensors"), llama())


def test_a_pattern_must_divide_the_inputs():
    (mistake,) = mistakes("{prune: {pattern: '5:7'}}")
    assert mistake.startswith(
        "stages[0].prune.pattern: 5:7 needs in_features that 7 divides, not 576"
    )
    assert mistake.endswith("Use another pattern, or put them on ignore.")


def test_a_pattern_of_an_override_is_told_where_it_stands():
    (mistake,) = mistakes("{prune: {sparsity: 0.5, overrides: {'*.down_proj': {pattern: '5:7'}}}}")
    assert mistake.startswith(
        "stages[0].prune.overrides.*.down_proj.pattern: 5:7 needs in_features that 7 divides, not "
        "1536 of model.layers.0.mlp.down_proj and 29 more"
    )


def test_an_override_behind_one_that_names_the_same_linears_is_told():
    overrides = "{'*.q_proj': {sparsity: 0.1}, '*self_attn.q_proj': {sparsity: 0.9}}"
    assert mistakes(f"{{prune: {{sparsity: 0.5, overrides: {overrides}}}}}") == [
        "stages[0].prune.overrides.*self_attn.q_proj: decides nothing: patterns above it name the "
        "same linears. Move it up."
    ]


def test_groups_must_divide_the_inputs():
    (mistake,) = mistakes("{prune: {sparsity: 0.5, quantize: {group_size: 128}}}")
    assert "stages[0].prune.quantize.group_size: 128 does not divide in_features 576" in mistake


def test_patterns_must_name_something():
    found = mistakes(
        "{prune: {sparsity: 0.5, targets: ['*.wq'], overrides: {'*.wk': {sparsity: 0.1}}}}"
    )
    assert "'*.wq' matches no linear. Names end in *.q_proj" in found[0]
    assert any("leaves every linear whole" in mistake for mistake in found)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ((W4, HALF), "stages[1].prune: model.layers.0.self_attn.q_proj and 209 more"),
        ((W4, HALF), "already quantized by stages[0]. Prune before, or prune once."),
        ((HALF, HALF), "already pruned by stages[0]. Put a distill between them, or prune once."),
        (
            ("{prune: {sparsity: 0.5, quantize: {bits: 4}}}", W4),
            "stages[1].quantize: model.layers.0.self_attn.q_proj: already pruned and quantized by "
            "stages[0]. Leave out one of them.",
        ),
    ],
)
def test_stages_must_not_undo_each_other(stages, told):
    assert any(told in mistake for mistake in mistakes(*stages))


@pytest.mark.parametrize("format", ["gptq", "gguf", "bnb-int8"])
def test_formats_of_integers_hold_no_floats(format):
    found = mistakes(HALF, format=format)
    assert any("holds linears of integers, and nothing is quantized" in one for one in found)


def test_a_plan_says_what_becomes_of_linears(tmp_path):
    spec = recipe(HALF)
    rows = list(overview._rows(spec, headers(llama())))
    assert {row.scheme for row in rows} == {"sparsegpt, 50 % zeros", "dense"}
    assert rows[0].bits_per_weight == pytest.approx(9)
    joint = recipe("{prune: {pattern: '2:4', quantize: {bits: 4}}}")
    row = next(overview._rows(joint, headers(llama())))
    assert row.scheme == "sparsegpt, 2:4; gptq, 4 bits, groups of 64, symmetric"
    assert row.bits_per_weight == pytest.approx(1 + 2 + 16 / 64)


def test_a_plain_folder_with_zeros_opens_anywhere():
    config = {"model_type": "llama", "num_attention_heads": 4, "max_position_embeddings": 256}
    found = consumers(llama(), config, {}, "compressed-tensors")
    told = {one.name: one for one in found}
    for name in ("compress", "transformers", "vLLM on CUDA"):
        assert told[name].loads
        assert told[name].reasons == ("a plain folder; zeros make nothing faster there",)


def test_memory_and_work_are_told():
    half = job(f"stages=[{HALF}]")
    whole = job("stages=[{prune: {method: magnitude, sparsity: 0.5}}]")
    corrected = job("stages=[{prune: {sparsity: 0.5, error_correction: 0.5}}]")
    steps = [memory.predict(one, Limits(), ())["compress"] for one in (whole, half, corrected)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]
    works = [work.work(one)["compress"] for one in (whole, half, corrected)]
    assert works == sorted(works)


def test_what_is_measured_to_share_zeros_out_is_told():
    def told(allocation, **shape):
        stage = f"{{prune: {{method: magnitude, sparsity: 0.5, allocation: {allocation}}}}}"
        one = job(f"stages=[{stage}]", **shape)
        return memory.predict(one, Limits(), ())["compress"], work.work(one)["compress"]

    for shape in ({}, {"width": 576, "hidden": 1536, "blocks": 30}):
        found = [told(allocation, **shape) for allocation in ("uniform", "owl", "sensitivity")]
        assert found == sorted(found)
        assert len({work for _, work in found}) == 3
    assert found[2][0] > found[0][0]


def test_a_plan_says_who_decides_how_many_are_zero():
    shared = "{prune: {sparsity: 0.5, allocation: owl, overrides: {'*.up_proj': {sparsity: 0.2}}}}"
    found = {row.linears: row.scheme for row in overview._rows(recipe(shared), headers(llama()))}
    assert found["down_proj"] == "sparsegpt, 50 % zeros by owl"
    assert found["up_proj"] == "sparsegpt, 20 % zeros"


def test_sizes_are_exact_where_they_do_not_depend_on_who_is_pruned():
    spec = recipe("{prune: {sparsity: 0.5, allocation: owl}}", format="compressed-tensors")
    assert not budget.at_most(spec, headers(llama())).at_most
    packed = recipe("{prune: {sparsity: 0.5, allocation: owl}}")
    most, uniform = (budget.at_most(r, headers(llama())) for r in (packed, recipe(HALF)))
    assert most.at_most
    assert uniform.size_bytes < most.size_bytes < 1.001 * uniform.size_bytes

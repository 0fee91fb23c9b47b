"""The stage `rotate` before a run: what cannot be turned, and what it adds to the artifact."""

from __future__ import annotations

from dataclasses import replace

import pytest
from anatomies import CONFIG as LLAMA
from anatomies import gpt2, llama
from anatomies import headers as bare

from compress import pipeline, plan
from compress.artifact.layout import open_artifact
from compress.errors import RecipeError
from compress.plan import memory, overview, sizes
from compress.plan.footprint import Job
from compress.recipe.load import load
from compress.results import Limits
from compress.teacher import headers as headers_of
from compress.teacher.folder import open_folder

CONFIG = {**LLAMA, "num_attention_heads": 9, "num_key_value_heads": 3}  # SmolLM2-135M
QUANTIZE = "{quantize: {method: rtn, bits: 4, group_size: 32}}"


def stages(fields="", quantize=QUANTIZE):
    return f"stages=[{{rotate: {{{fields}}}}}, {quantize}]"


def headers(anatomy):
    return replace(bare(anatomy), config=CONFIG)


def mistakes(anatomy, *sets, config=None):
    with pytest.raises(RecipeError) as caught:
        plan.check(load("quickstart", sets), anatomy, config=config)
    return [mistake.removeprefix("recipe  ") for mistake in caught.value.mistakes]


def test_a_model_that_turns_passes():
    plan.check(load("quickstart", [stages()]), llama(), config=CONFIG)


def test_families_are_named_with_what_can_be_done():
    residual, values = mistakes(gpt2(), stages(), config={"n_head": 4})
    assert residual == (
        "stages[0].rotate.residual: hadamard, and norms of gpt2 do more than divide by a length "
        "and multiply by a weight, or lie behind linears. Use residual: none; families that can: "
        "llama, mistral, qwen2, qwen3."
    )
    assert values == (
        "stages[0].rotate.values: hadamard, and q, k and v of gpt2 are one matrix. "
        "Use values: none."
    )


@pytest.mark.parametrize("family", ["opt", "gemma2", "gemma3_text"])
def test_values_turn_where_a_residual_stream_does_not(tiny_model, family):
    teacher = open_folder(tiny_model(family))
    check = (teacher.anatomy, None)
    plan.check(load("quickstart", [stages("residual: none")]), *check, config=teacher.config)
    (mistake,) = mistakes(teacher.anatomy, stages("values: none"), config=teacher.config)
    assert f"norms of {family} do more" in mistake


def test_a_width_without_a_hadamard_matrix_is_told():
    found = mistakes(llama(width=210, hidden=64), stages("values: none"), config=CONFIG)
    told = "no Hadamard matrix of size 210 is known here. Use random."
    assert f"stages[0].rotate.residual: {told}" in found


def test_a_head_that_comes_off_may_be_rounded_for_other_engines():
    """compressed-tensors has no quantized embedding; a head of its own it can hold."""
    quantize = "{quantize: {method: rtn, bits: 4, group_size: 32, head: 8}}"
    sets = stages(quantize=quantize), "artifact.format=compressed-tensors"
    plan.check(load("quickstart", sets), llama(), config=CONFIG)
    assert any("head" in m for m in mistakes(llama(), stages("residual: none", quantize), sets[1]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", ["", "residual: none", "values: none"])
@pytest.mark.parametrize("head", ["", "head: 8, "])
def test_every_byte_is_foretold(tiny_tied, recipe_for, tmp_path, fields, head, dtype):
    quantize = f"{{quantize: {{{head}method: rtn, bits: 4, group_size: 32}}}}"
    recipe = recipe_for(tiny_tied, stages(fields, quantize), f"teacher.dtype={dtype}")
    pipeline.compress_only(recipe, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    found = sizes.size(recipe, headers_of.read(str(tiny_tied)))
    assert {part.part: part.after_bytes for part in found.parts} == artifact.parts_sizes()
    assert {part.part: part.weights for part in found.parts} == artifact.parts_weights()
    assert found.size_bytes == artifact.size_bytes
    assert artifact.anatomy.tied == (fields == "residual: none")
    assert artifact.config["tie_word_embeddings"] == artifact.anatomy.tied


def test_what_a_rotation_unties_is_paid_for_and_said():
    wanted = stages("residual: none"), stages()
    plain, turned = (load("quickstart", [one, "teacher.model=x"]) for one in wanted)
    before, after = (sizes.size(recipe, headers(llama())) for recipe in (plain, turned))
    embedding = 49152 * 576 * 2
    assert after.before_bytes == before.before_bytes
    assert embedding < after.size_bytes - before.size_bytes < embedding + 200
    weights = llama().weights + llama().head.weights
    added = 8 * embedding / weights
    assert after.bits_per_weight == before.bits_per_weight
    assert abs(after.bits_per_weight_with_head - before.bits_per_weight_with_head - added) < 1e-9


def test_the_plan_says_what_the_head_costs(tmp_path):
    recipe = load("quickstart", [stages(), "evaluate.suite=none"])
    found = overview.make(recipe, headers(llama()), cache=tmp_path)
    assert any("unties the head" in note and "56.6 MB more" in note for note in found.notes)
    assert not any("one matrix" in note for note in found.notes)


def test_turned_blocks_take_memory():
    def peak(*sets):
        job = Job(load("quickstart", sets), headers(llama(4096, 11008, 2, tied=False)), None, 2)
        return memory.predict(job, Limits())["compress"]

    assert peak(stages()) > peak(f"stages=[{QUANTIZE}]")

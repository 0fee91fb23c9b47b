import pytest

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.errors import RecipeError
from compress.plan import caching, check, memory, sizes, work
from compress.plan.consumers import consumers
from compress.plan.footprint import Job
from compress.results import Limits
from compress.teacher import headers

CT = "artifact.format=compressed-tensors"
ALONE, BEHIND = (
    "stages=[{kv_cache: {}}]",
    "stages=[{quantize: {method: rtn, group_size: 32}}, {kv_cache: {}}]",
)
CASES = {
    "alone": (ALONE,),
    "behind": (BEHIND,),
    "a tensor": (BEHIND, "kv_cache.granularity=tensor"),
    "a channel": (BEHIND, "kv_cache.granularity=channel"),
    "a token": (BEHIND, "kv_cache.granularity=token"),
    "exported": (BEHIND, CT),
    "exported, e4m3": (BEHIND, CT, "kv_cache={numbers: fp8_e4m3, granularity: tensor}"),
    "exported alone": (ALONE, CT),
    "shards": (BEHIND, "artifact.max_shard_size=30 KB"),
    "cast": (BEHIND, "teacher.dtype=bfloat16"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_byte_is_foretold_and_so_is_every_token(tiny_llama, recipe_for, tmp_path, case):
    recipe, found = recipe_for(tiny_llama, *CASES[case]), headers.read(str(tiny_llama))
    pipeline.compress_only(recipe, out=tmp_path / "out")
    artifact, size = open_artifact(tmp_path / "out"), sizes.size(recipe, found)
    assert {part.part: part.after_bytes for part in size.parts} == artifact.parts_sizes()
    assert size.size_bytes == artifact.size_bytes
    before, after = caching.per_token(recipe, found)
    assert after == artifact.kv_bytes_per_token
    item_bytes = 2 if case == "cast" else 4
    assert before == 2 * 2 * 2 * 16 * item_bytes
    assert after < before


def refused(recipe, folder):
    found = headers.read(str(folder))
    with pytest.raises(RecipeError) as caught:
        check(recipe, found.anatomy, config=found.config)
    return caught.value.mistakes


def test_what_cannot_work_is_told_before_a_run(tiny_model, recipe_for):
    gemma, gpt2 = tiny_model("gemma2"), tiny_model("gpt2")
    (mistake,) = refused(recipe_for(gemma, ALONE), gemma)
    assert "stages[0].kv_cache: gemma2 caps the scores of its attention" in mistake
    (mistake,) = refused(recipe_for(gpt2, ALONE, CT), gpt2)
    assert "find attention by its k_proj, and gpt2 has none. Use artifact.format: packed" in mistake
    (mistake,) = refused(recipe_for(gpt2, ALONE, "kv_cache.granularity=channel"), gpt2)
    assert "stages[0].kv_cache.granularity: channel" in mistake
    assert "not for gpt2. Use head." in mistake


@pytest.mark.parametrize(("numbers", "opens"), [("int8", False), ("fp8_e4m3", True)])
def test_vllm_opens_scales_of_e4m3_alone(tiny_llama, recipe_for, numbers, opens):
    recipe = recipe_for(tiny_llama, BEHIND, CT, f"kv_cache.numbers={numbers}")
    found = headers.read(str(tiny_llama))
    matrices = sizes.matrices(found.anatomy, sizes.schemes(recipe, found.anatomy))
    told = consumers(
        found.anatomy, found.config, matrices, recipe.artifact.format, sizes.caches(recipe)
    )
    by_name = {one.name: one for one in told}
    assert by_name["transformers"].loads
    assert by_name["vLLM on CUDA"].loads is by_name["vLLM on a CPU"].loads is opens


@pytest.mark.parametrize("stages", [ALONE, BEHIND])
def test_memory_and_work_are_counted(tiny_llama, recipe_for, stages):
    recipe = recipe_for(tiny_llama, stages)
    job = Job(recipe, headers.read(str(tiny_llama)), None, 4)
    assert caching.memory(job, Limits()) > job.base_bytes
    assert work.work(job)["compress"] >= caching.work(job) > 0
    assert memory.predict(job, Limits(), ())["compress"] >= caching.memory(job, Limits())

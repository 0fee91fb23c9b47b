import pytest

from compress.plan import sizes
from compress.plan.consumers import ROTATIONS, consumers
from compress.runtime import rope
from compress.teacher import headers

CT = "artifact.format=compressed-tensors"


def asked(recipe, folder, **config):
    found = headers.read(str(folder))
    matrices = sizes.matrices(found.anatomy, sizes.schemes(recipe, found.anatomy))
    told = consumers(found.anatomy, {**found.config, **config}, matrices, recipe.artifact.format)
    return {one.name: one for one in told}


def test_rotations_are_those_of_the_runtime():
    assert ROTATIONS == rope.SUPPORTED


def test_packed_is_opened_by_us_and_others_are_told_what_would_be(tiny_llama, recipe_for):
    found = asked(recipe_for(tiny_llama), tiny_llama)
    assert [one.name for one in found.values() if one.loads] == ["compress"]
    assert found["transformers"].reasons == (
        "does not know the format packed",
        "would open artifact.format: compressed-tensors",
    )


def test_fused_linears_of_two_schemes_are_told_even_where_the_format_holds_them(
    tiny_llama, recipe_for
):
    recipe = recipe_for(tiny_llama, "quantize.overrides={'*.q_proj': {bits: 8}}")
    found = asked(recipe, tiny_llama)
    assert found["compress"].loads
    _, why = found["vLLM on CUDA"].reasons
    assert "q_proj, k_proj, v_proj are fused by serving engines and must share one scheme" in why
    assert why.endswith("(and 1 more such)")


def test_an_exported_artifact_is_opened_by_most(tiny_llama, recipe_for):
    found = asked(recipe_for(tiny_llama, CT), tiny_llama)
    assert [one.name for one in found.values() if not one.loads] == ["llama.cpp"]


@pytest.mark.parametrize(
    ("sets", "closed"),
    [
        (["quantize.bits=8"], ["vLLM on a CPU", "llama.cpp"]),
        (["quantize.sym=false"], ["llama.cpp"]),
        (["quantize.sym=false", "quantize.bits=8"],
         ["vLLM on CUDA", "vLLM on a CPU", "llama.cpp"]),
        (["quantize.sym=false", "quantize.overrides={'*.down_proj': {group_size: 64}}"],
         ["transformers", "llama.cpp"]),
    ],
)  # fmt: skip
def test_each_consumer_says_which_scheme_it_cannot_take(tiny_llama, recipe_for, sets, closed):
    found = asked(recipe_for(tiny_llama, CT, *sets), tiny_llama)
    assert [one.name for one in found.values() if not one.loads] == closed
    assert all(one.reasons for one in found.values() if not one.loads)


def test_widths_that_a_cpu_product_cannot_take_are_told(tiny_model, recipe_for):
    folder = tiny_model("llama", intermediate_size=144)
    recipe = recipe_for(folder, CT, "quantize.group_size=-1")
    (why,) = asked(recipe, folder)["vLLM on a CPU"].reasons
    assert why == "its product needs widths that 32 divides, not 144"


def test_our_runtime_says_which_model_it_does_not_run(tiny_model, tiny_llama, recipe_for):
    assert asked(recipe_for(tiny_model("gpt2")), tiny_model("gpt2"))["compress"].loads
    turned = asked(recipe_for(tiny_llama), tiny_llama, rope_scaling={"rope_type": "yarn"})
    assert turned["compress"].reasons == ("runs the rotations default, linear, llama3, not yarn",)
    (why,) = asked(recipe_for(tiny_llama), tiny_llama, hidden_act="mish")["compress"].reasons
    assert why.startswith("refuses it: config.json: hidden_act 'mish' is not run here")


def test_gptq_is_opened_by_vllm_and_gguf_by_llama_cpp(tiny_llama, recipe_for):
    found = asked(recipe_for(tiny_llama, "artifact.format=gptq"), tiny_llama)
    assert [one.name for one in found.values() if not one.loads] == ["llama.cpp"]
    assert found["transformers"].reasons == ("with the gptqmodel package; not tried here",)
    found = asked(recipe_for(tiny_llama, "artifact.format=gguf"), tiny_llama)
    assert [one.name for one in found.values() if not one.loads] == [
        "vLLM on CUDA",
        "vLLM on a CPU",
    ]


def test_llama_cpp_is_told_what_would_do(tiny_llama, recipe_for):
    found = asked(recipe_for(tiny_llama), tiny_llama)["llama.cpp"]
    assert found.reasons == (
        "opens GGUF files only, not packed",
        "would open compress export --format gguf",
    )
    wide = recipe_for(tiny_llama, "quantize.bits=8", "quantize.sym=false")
    assert "8 bits on an asymmetric grid" in asked(wide, tiny_llama)["llama.cpp"].reasons[1]


@pytest.mark.parametrize(
    ("method", "gpu"),
    [("fp8", "capability 8.9"), ("nvfp4", "Blackwell"), ("mxfp4", "Blackwell")],
)
def test_floating_numbers_say_which_gpus_multiply_them(tiny_llama, recipe_for, method, gpu):
    sets = {
        "fp8": ("quantize.bits=8", "quantize.group_size=-1"),
        "nvfp4": ("quantize.group_size=16",),
    }.get(method, ())
    found = asked(recipe_for(tiny_llama, CT, *sets, f"quantize.method={method}"), tiny_llama)
    assert found["transformers"].loads
    assert ("in bfloat16" in found["transformers"].reasons[0]) is (method != "fp8")
    assert gpu in found["vLLM on CUDA"].reasons[0]
    assert f"no product of {method}" in found["vLLM on a CPU"].reasons[0]


def test_blocks_of_fp8_must_divide_what_vllm_fuses(tiny_model, recipe_for):
    folder = tiny_model("llama", hidden_size=128, intermediate_size=256)
    sets = (CT, "quantize.bits=8", "quantize.group_size=128", "quantize.method=fp8")
    found = asked(recipe_for(folder, *sets, "quantize.strategy=block"), folder)
    assert (
        "need blocks of 128 rows to divide them: model.layers.0.self_attn.q_proj"
        in (found["vLLM on CUDA"].reasons[0])
    )

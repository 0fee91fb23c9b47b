import pytest

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.plan import sizes
from compress.teacher import headers

CASES = {
    "packed": (),
    "compressed-tensors": ("artifact.format=compressed-tensors",),
    "gptq": ("artifact.format=gptq",),
    "asymmetric": ("quantize.sym=false", "artifact.format=compressed-tensors"),
    "one group a row": ("quantize.group_size=-1",),
    "odd words": ("quantize.bits=3", "quantize.sym=false"),
    "half dense": ("quantize.targets=['*.down_proj']",),
    "mixed": ("quantize.overrides={'*.q_proj': {bits: 8}, '*.k_proj': {group_size: 64}}",),
    "head": ("quantize.head=8",),
    "shards": ("artifact.max_shard_size=30 KB",),
    "fp8": ("quantize.method=fp8", "quantize.bits=8", "quantize.group_size=-1"),
    "fp8, static": (
        "quantize.method=fp8", "quantize.bits=8", "quantize.group_size=-1",
        "quantize.strategy=tensor", "quantize.activations=static",
        "artifact.format=compressed-tensors",
    ),
    "nvfp4": (
        "quantize.method=nvfp4", "quantize.group_size=16", "quantize.activations=static",
        "artifact.format=compressed-tensors",
    ),
    "nvfp4, packed": ("quantize.method=nvfp4", "quantize.group_size=16"),
    "mxfp4": ("quantize.method=mxfp4", "artifact.format=compressed-tensors"),
    "cast": ("teacher.dtype=bfloat16",),
    "cast, exported": ("teacher.dtype=bfloat16", "artifact.format=compressed-tensors"),
}  # fmt: skip


def made(recipe, out):
    pipeline.compress_only(recipe, out=out)
    return open_artifact(out)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_byte_of_an_artifact_is_foretold(tiny_model, recipe_for, tmp_path, case, tied):
    folder = tiny_model("llama", tied=tied)
    recipe = recipe_for(folder, *CASES[case])
    artifact = made(recipe, tmp_path / "out")
    found = sizes.size(recipe, headers.read(str(folder)))
    assert {part.part: part.after_bytes for part in found.parts} == artifact.parts_sizes()
    assert {part.part: part.weights for part in found.parts} == artifact.parts_weights()
    assert found.size_bytes == artifact.size_bytes == sum(p.after_bytes for p in found.parts)
    assert found.bits_per_weight == artifact.bits_per_weight
    assert found.before_bytes == sum(part.before_bytes for part in found.parts)


def test_a_gguf_file_is_foretold_but_for_its_vocabulary(tiny_tied, recipe_for, tmp_path):
    recipe = recipe_for(tiny_tied, "artifact.format=gguf", "quantize.head=8")
    artifact = made(recipe, tmp_path / "out")
    found = sizes.size(recipe, headers.read(str(tiny_tied)))
    exact, told = artifact.parts_sizes(), {part.part: part.after_bytes for part in found.parts}
    vocabulary = (tmp_path / "out" / "tokenizer.json").stat().st_size
    assert abs(exact.pop("other files") - told.pop("other files")) < vocabulary
    assert told == exact
    assert found.bits_per_weight == artifact.bits_per_weight == 4.5


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "gemma2"])
def test_every_family_is_foretold(tiny_model, recipe_for, tmp_path, family):
    recipe = recipe_for(tiny_model(family))
    artifact = made(recipe, tmp_path / "out")
    assert (
        sizes.size(recipe, headers.read(str(tiny_model(family)))).size_bytes == artifact.size_bytes
    )


def test_bits_are_told_with_the_head_and_without(tiny_tied, recipe_for):
    dense = sizes.size(recipe_for(tiny_tied), headers.read(str(tiny_tied)))
    both = sizes.size(recipe_for(tiny_tied, "quantize.head=8"), headers.read(str(tiny_tied)))
    assert dense.bits_per_weight == both.bits_per_weight == 4.5  # 16 bits of scale for 32 weights
    assert dense.bits_per_weight < both.bits_per_weight_with_head < dense.bits_per_weight_with_head


def test_disk_names_what_takes_it(tiny_llama, recipe_for):
    found = sizes.disk(recipe_for(tiny_llama), headers.read(str(tiny_llama)), spilled_bytes=7)
    assert found["activations"] == 7
    assert found["download"] == found["dequantized teacher"] == 0
    assert 0 < found["finished blocks"] < found["artifact"]

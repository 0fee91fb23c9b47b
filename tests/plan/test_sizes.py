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

PRUNED = {
    "half": ("{method: sparsegpt, sparsity: 0.5}",),
    "wanda": ("{method: wanda, sparsity: 0.37}",),
    "magnitude, bfloat16": ("{method: magnitude, sparsity: 0.5}", "teacher.dtype=bfloat16"),
    "2:4": ('{pattern: "2:4"}',),
    "plain": ("{sparsity: 0.5}", "artifact.format=compressed-tensors"),
    "too little for a mask": ("{method: magnitude, sparsity: 0.02}",),
    "some": ("{sparsity: 0.5, targets: ['*.up_proj'], overrides: {'*1.mlp*': {pattern: '4:8'}}}",),
    "joint": ("{sparsity: 0.5, quantize: {bits: 4, group_size: 32}}",),
    "joint, asymmetric": ("{sparsity: 0.6, quantize: {bits: 3, group_size: 32, sym: false}}",),
    "joint, 2 bits": ("{sparsity: 0.5, quantize: {bits: 2, group_size: 32}}",),
    "joint, exported": (
        "{sparsity: 0.5, quantize: {bits: 4, group_size: 32}}",
        "artifact.format=compressed-tensors",
    ),
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


def assert_foretold(recipe, folder, out):
    artifact, found = made(recipe, out), sizes.size(recipe, headers.read(str(folder)))
    assert {part.part: part.after_bytes for part in found.parts} == artifact.parts_sizes()
    assert found.size_bytes == artifact.size_bytes
    return artifact


@pytest.mark.parametrize("case", PRUNED)
def test_every_byte_of_a_pruned_artifact_is_foretold(tiny_llama, recipe_for, tmp_path, case):
    prune, *sets = PRUNED[case]
    recipe = recipe_for(tiny_llama, f"stages=[{{prune: {prune}}}]", *sets)
    artifact = assert_foretold(recipe, tiny_llama, tmp_path / "out")
    masks = [name for name in artifact.checkpoint.tensors if name.endswith(".mask")]
    told = ("plain", "exported", "too little", "2 bits")
    assert bool(masks) != any(words in case for words in told)


def test_what_is_pruned_and_then_quantized_is_foretold(tiny_llama, recipe_for, tmp_path):
    stages = "[{prune: {sparsity: 0.5}}, {quantize: {bits: 4, group_size: 32, head: 8}}]"
    recipe = recipe_for(tiny_llama, f"stages={stages}")
    artifact = assert_foretold(recipe, tiny_llama, tmp_path / "out")
    assert not artifact.pruned
    assert artifact.matrices["model.layers.0.mlp.up_proj"].kept_words == 128 * 32 * 4 // 32
    assert not artifact.matrices["lm_head"].kept_words


def test_a_conv1d_that_is_pruned_is_foretold(tiny_model, recipe_for, tmp_path):
    folder = tiny_model("gpt2")
    recipe = recipe_for(folder, "stages=[{prune: {sparsity: 0.5}}]")
    assert_foretold(recipe, folder, tmp_path / "out")


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

"""What a cut model takes is told before it is made; what cannot be cut is refused."""

import dataclasses

import pytest

from compress import pipeline, plan
from compress.artifact.layout import open_artifact
from compress.errors import RecipeError
from compress.plan import overview, reshaping, rotation, sizes
from compress.shape import shape_of, target
from compress.stages import width
from compress.teacher import headers

CASES = {
    "channels": "[{restructure: {ffn: 0.5}}]",
    "blocks": "[{restructure: {depth: 0.5}}]",
    "heads": "[{restructure: {heads: 2}}]",
    "keys and values": "[{restructure: {kv_heads: 1, repair: false}}]",
    "all": "[{restructure: {ffn: 0.5, depth: 0.5, kv_heads: 1}}]",
    "quantized": "[{restructure: {ffn: 0.5}}, {quantize: {method: rtn, group_size: 32, head: 8}}]",
    "pruned": "[{restructure: {ffn: 0.5, depth: 0.5}}, {prune: {sparsity: 0.5}}]",
    "width": "[{restructure: {hidden: 0.5}}]",
    "channels of the stream": "[{restructure: {hidden: 0.5, ffn: 0.5, importance: activation}}]",
    "named": "[{restructure: {blocks: [1]}}]",
    "every second": "[{restructure: {blocks: every_second, ffn: 0.5}}]",
    "twice": "[{restructure: {heads: 2}}, {restructure: {depth: 0.5}}]",
}

DENSE = ("channels", "blocks", "named", "twice", "width")


@pytest.mark.parametrize("case", CASES)
def test_every_byte_of_a_cut_artifact_is_foretold(tiny_model, recipe_for, tmp_path, case):
    format = "dense" if case in DENSE else "packed"
    width = 128 if "hidden" in CASES[case] else 64
    tiny_tied = tiny_model("llama", tied=True, hidden_size=width)
    recipe = recipe_for(tiny_tied, f"stages={CASES[case]}", f"artifact.format={format}")
    pipeline.compress_only(recipe, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    found = sizes.size(recipe, headers.read(str(tiny_tied)))
    assert {part.part: part.after_bytes for part in found.parts} == artifact.parts_sizes()
    assert found.size_bytes == artifact.size_bytes


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt"])
def test_families_are_foretold(tiny_model, recipe_for, tmp_path, family):
    folder = tiny_model(family)
    recipe = recipe_for(folder, "stages=[{restructure: {ffn: 0.5, depth: 0.5}}]")
    pipeline.compress_only(recipe, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    assert sizes.size(recipe, headers.read(str(folder))).size_bytes == artifact.size_bytes
    assert shape_of(artifact.config, artifact.anatomy).blocks == 1


def test_a_plan_tells_the_shape_and_who_opens_it(tiny_llama, recipe_for, tmp_path):
    recipe = recipe_for(
        tiny_llama, "stages=[{restructure: {ffn: 0.5, kv_heads: 1}}]", "artifact.format=dense"
    )
    found = overview.make(recipe, headers.read(str(tiny_llama)), cache=tmp_path)
    assert "restructure: heads of keys and values 2 → 1, MLP channels 128 → 64" in found.notes
    opening = {consumer.name: consumer.loads for consumer in found.consumers}
    assert opening["transformers"]
    assert opening["vLLM on a CPU"]
    assert found.kv_bytes_per_token[1] * 2 == found.kv_bytes_per_token[0]


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("[{restructure: {depth: 0.5}}]", ["stages[0].restructure: 6 of 12"]),
        ("[{restructure: {depth: 0.67}}, {restructure: {depth: 0.75}}]", []),
        (
            "[{restructure: {depth: 0.9}}, {restructure: {depth: 0.5}}]",
            ["stages[1].restructure: 5 of 11"],
        ),
        ("[{restructure: {blocks: every_second}}]", []),
    ],
)
def test_a_plan_says_where_too_many_blocks_go_at_once(
    tiny_model, recipe_for, tmp_path, stages, told
):
    folder = tiny_model("llama", num_hidden_layers=12)
    recipe = recipe_for(folder, f"stages={stages}", "artifact.format=dense")
    notes = overview.make(recipe, headers.read(str(folder)), cache=tmp_path).notes
    found = [note for note in notes if "blocks go before anything" in note]
    assert [note[: len(start)] for note, start in zip(found, told, strict=True)] == told


def mistakes(recipe, folder):
    found = headers.read(str(folder))
    with pytest.raises(RecipeError) as caught:
        plan.check(recipe, found.anatomy, config=found.config)
    return [mistake.partition("restructure.")[2] for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("ffn: 0.9", "ffn: 0.9 of 128 in multiples of 64 leaves all. Ask for less."),
        ("depth: 0.9", "depth: 0.9 of 2 leaves all. Ask for less."),
        ("blocks: [0, 1]", "blocks: every one of 2 leaves all. Ask for less."),
        ("blocks: [0, 2]", "blocks: 2: the model has 2 blocks, 0 to 1. Name those."),
        (
            "hidden: 0.99",
            "hidden: 0.99 of 64 in steps that heads divide leaves all. Ask for less.",
        ),
        (
            "heads: 3",
            "heads: 3 of 4 heads, which leave in whole groups and divide the width of 64, cannot "
            "be. Use 2.",
        ),
        (
            "kv_heads: 2",
            "kv_heads: 2 of 2 heads of keys and values, of which neighbours are merged, cannot be. "
            "Use 1.",
        ),
    ],
)
def test_what_leaves_all_there_is_names_what_fits(tiny_llama, recipe_for, asked, said):
    recipe = recipe_for(tiny_llama, f"stages=[{{restructure: {{{asked}}}}}]")
    assert mistakes(recipe, tiny_llama) == [said]


def test_what_a_family_cannot_lose_is_refused(tiny_model, recipe_for):
    folder = tiny_model("gpt2")
    recipe = recipe_for(folder, "stages=[{restructure: {kv_heads: 1}}]")
    assert mistakes(recipe, folder) == [
        "kv_heads: gpt2 has no head_dim: its heads together are as wide as the stream. Cut depth "
        "or ffn instead."
    ]


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt2", "no channel can leave their mean. Cut depth or ffn instead."),
        (
            "gemma2",
            "they multiply by one more than their weight, and only a weight is rescaled. Cut depth "
            "or ffn or heads or kv_heads instead.",
        ),
    ],
)
def test_norms_that_do_more_than_scale_are_refused_with_what_they_do(
    tiny_model, recipe_for, family, why
):
    folder = tiny_model(family)
    recipe = recipe_for(folder, "stages=[{restructure: {hidden: 0.5}}]")
    assert mistakes(recipe, folder) == [f"hidden: norms of {family} do more than scale: {why}"]


def test_a_plan_tells_that_a_turned_stream_takes_a_tied_head_along(tiny_model, recipe_for):
    found = headers.read(str(tiny_model("llama", tied=True, hidden_size=128)))
    recipe = recipe_for(found.name, "stages=[{restructure: {hidden: 0.5}}]")
    notes = [*rotation.note(recipe, found), *reshaping.notes(recipe, found)]
    assert notes[0].startswith("restructure.hidden turns the stream and unties the head")
    assert notes[1] == "restructure: width 128 → 64"


def test_widths_are_steps_that_heads_divide(tiny_llama):
    found = open_artifact(tiny_llama)
    shape = shape_of(found.config, found.anatomy)
    for hidden, heads, share, left in (
        (576, 9, 0.75, 432),
        (896, 14, 0.75, 672),
        (2048, 32, 0.5, 1024),
    ):
        whole = dataclasses.replace(shape, hidden=hidden, heads=heads)
        assert target(whole, hidden=share).hidden == left


def test_plans_know_how_much_is_read():
    assert reshaping.NARROWED_WINDOWS == width.WINDOWS


def test_formats_of_integers_hold_no_model_that_is_only_cut(tiny_llama, recipe_for):
    sets = ("stages=[{restructure: {ffn: 0.5}}]", "artifact.format=gptq")
    found = headers.read(str(tiny_llama))
    with pytest.raises(RecipeError, match="gptq holds linears of integers, and nothing is quant"):
        plan.check(recipe_for(tiny_llama, *sets), found.anatomy, config=found.config)


def test_what_is_behind_a_cut_is_held_against_what_is_left(tiny_llama, recipe_for):
    stages = "[{restructure: {ffn: 0.5}}, {quantize: {method: rtn, group_size: 128}}]"
    recipe = recipe_for(tiny_llama, f"stages={stages}")
    found = headers.read(str(tiny_llama))
    with pytest.raises(RecipeError, match=r"64 of model\.layers\.0\.self_attn\.q_proj and 13 more"):
        plan.check(recipe, found.anatomy, config=found.config)


SHARED = "{restructure: {ffn: 0.5, uniform: false}}"


@pytest.fixture
def wide(tiny_model):
    """Four blocks of 256 channels."""
    return tiny_model("llama", num_hidden_layers=4, intermediate_size=256)


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq", "gguf"])
def test_readers_that_build_all_blocks_alike_are_not_written_for(wide, recipe_for, format):
    stages = f"stages=[{SHARED}, {{quantize: {{method: rtn, bits: 8, group_size: 64}}}}]"
    (said,) = mistakes(recipe_for(wide, stages, f"artifact.format={format}"), wide)
    assert said == (
        f"uniform: false makes blocks of different widths, and no reader of {format} builds those. "
        "Use uniform: true, or artifact.format: packed or dense, which our runtime opens."
    )


def test_groups_divide_whatever_number_of_channels_a_block_may_keep(wide, recipe_for):
    stages = f"stages=[{SHARED}, {{quantize: {{method: rtn, group_size: 128, ignore: "
    stages += "['*self_attn*', '*up_proj', '*gate_proj']}}]"
    found = headers.read(str(wide))
    with pytest.raises(
        RecipeError, match=r"128 does not divide in_features 64 of model\.layers\.2"
    ):
        plan.check(recipe_for(wide, stages), found.anatomy, config=found.config)


def test_a_plan_tells_who_opens_blocks_of_different_widths(wide, recipe_for, tmp_path):
    recipe = recipe_for(wide, f"stages=[{SHARED}]", "artifact.format=dense")
    found = overview.make(recipe, headers.read(str(wide)), cache=tmp_path)
    note = "restructure: MLP channels 1,024 → 512 in all; here as uneven as they may come"
    assert note in found.notes
    opening = {consumer.name: consumer.loads for consumer in found.consumers}
    assert opening.pop("compress")
    assert not any(opening.values())
    refused = next(one for one in found.consumers if one.name == "vLLM on CUDA")
    assert "uniform: true" in refused.reasons[0]


def test_weights_of_shared_channels_are_foretold(wide, recipe_for, tmp_path):
    recipe = recipe_for(wide, f"stages=[{SHARED}, {{quantize: {{method: rtn, group_size: 32}}}}]")
    pipeline.compress_only(recipe, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    found = sizes.size(recipe, headers.read(str(wide)))
    told = {part.part: part.after_bytes for part in found.parts}
    assert told["block linears"] == artifact.parts_sizes()["block linears"]


def test_an_uneven_model_is_exported_to_no_other_reader(wide, recipe_for, tmp_path):
    from compress.artifact.formats import FORMATS
    from compress.plan.reshaping import made

    found = headers.read(str(wide))
    left = made(recipe_for(wide, f"stages=[{SHARED}]"), found.anatomy, found.config)
    refusing = {name: bool(form.refusals(left.anatomy, {})) for name, form in FORMATS.items()}
    assert [name for name, refuses in refusing.items() if not refuses] == ["packed", "dense"]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("blocks: [3]", "blocks"),
        ("heads: 2", "heads"),
        ("kv_heads: 1", "heads of keys and values"),
    ],
)
def test_numbers_are_not_held_against_a_shape_that_is_searched_for(wide, recipe_for, asked, what):
    recipe = recipe_for(
        wide, f"stages=[{{restructure: {{keep: 0.5}}}}, {{restructure: {{{asked}}}}}]"
    )
    assert mistakes(recipe, wide) == [
        f"{asked.partition(':')[0]}: how many {what} there will be is searched for by a stage "
        "before it. Put this one in front of that."
    ]


def test_shapes_are_not_searched_among_blocks_that_differ(wide, recipe_for):
    recipe = recipe_for(wide, f"stages=[{SHARED}, {{restructure: {{keep: 0.5}}}}]")
    assert mistakes(recipe, wide) == [
        "keep: tries shapes whose blocks are alike, and these differ. Give depth or ffn."
    ]

import pytest
from pydantic import ValidationError

from compress.recipe import resolve
from compress.recipe.restructure import Restructure
from compress.recipe.schema import Recipe


def fault(**fields):
    with pytest.raises(ValidationError) as caught:
        Restructure(**fields)
    return " ".join(error["msg"] for error in caught.value.errors())


def test_shapes_go_together():
    spec = Restructure(depth=0.75, ffn=0.5, kv_heads=1)
    assert spec.shares == {"depth": 0.75, "ffn": 0.5, "kv_heads": 1}
    assert spec.written == "depth 0.75, ffn 0.5, kv_heads 1"
    assert not spec.searches


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"parameters": "100M"}, 100_000_000),
        ({"parameters": "1.5B"}, 1_500_000_000),
        ({"size": "150 MB"}, 150_000_000),
        ({"decode_latency": "0.7x"}, 0.7),
        ({"keep": 0.8}, 0.8),
    ],
)
def test_targets_are_read_with_their_unit(fields, number):
    spec = Restructure(**fields)
    assert spec.searches
    found = (spec.keep, spec.most_parameters, spec.most_bytes, spec.most_time)
    assert number in found


def test_something_has_to_be_taken_away():
    assert "takes nothing away. Give depth" in fault()
    assert "takes nothing away" in fault(repair=False)


def test_a_shape_and_a_target_contradict_each_other():
    assert "searches for a shape, and ffn gives one" in fault(ffn=0.5, keep=0.8)
    assert "searches for a shape, and keep gives one" in fault(keep=0.8, size="10 MB")
    assert "merges keys and values, and heads removes them" in fault(heads=2, kv_heads=1)
    assert "to a narrower stream, and kv_heads merges them" in fault(hidden=0.5, kv_heads=1)


def test_gradients_score_nothing_where_neither_heads_nor_channels_go():
    said = "first_order scores heads, MLP channels and width, and kv_heads 1 removes none"
    assert said in fault(kv_heads=1, importance="first_order")
    assert Restructure(keep=0.8, importance="first_order").searches
    assert Restructure(kv_heads=1, ffn=0.5, importance="first_order").shares
    assert Restructure(hidden=0.5, importance="first_order").turns
    assert not Restructure(hidden=0.5, importance="activation").turns


def test_channels_are_shared_out_where_ffn_leaves_some():
    assert Restructure(ffn=0.5).uniform
    assert (
        Restructure(ffn=0.5, depth=0.5, uniform=False).written == "depth 0.5, ffn 0.5, shared out"
    )
    assert "shares out the channels that ffn leaves. Give ffn" in fault(depth=0.5, uniform=False)
    assert "shares out the channels that ffn leaves. Give ffn" in fault(keep=0.5, uniform=False)
    assert "heads leave alike in every block" in fault(ffn=0.5, heads=2, uniform=False)


def test_fields_of_repair_need_repair():
    assert "repair: false does not use this field" in fault(ffn=0.5, repair=False, damp_percent=0.1)


def recipe(*stages):
    return Recipe.model_validate({"version": 1, "teacher": {"model": "a/b"}, "stages": stages})


def test_a_cut_without_repair_is_locked_without_what_repairs():
    cut = {"ffn": 0.5, "repair": False}
    again = resolve.pin(recipe({"restructure": cut}), {})
    assert again.stages[0].restructure == Restructure(**cut)


def test_a_cut_comes_before_what_it_would_undo():
    assert recipe({"restructure": {"ffn": 0.5}}, {"quantize": {}}).needs_calibration
    with pytest.raises(ValidationError, match="would undo what prune before it did to them"):
        recipe({"prune": {"sparsity": 0.5}}, {"restructure": {"ffn": 0.5}})


def test_dense_holds_what_no_stage_rounds():
    cut, rounded = {"restructure": {"ffn": 0.5}}, {"quantize": {}}
    base = {"version": 1, "teacher": {"model": "a/b"}, "artifact": {"format": "dense"}}
    Recipe.model_validate({**base, "stages": [cut]})
    with pytest.raises(ValidationError, match="dense holds weights and no codes, and stages"):
        Recipe.model_validate({**base, "stages": [cut, rounded]})


@pytest.mark.parametrize("asked", ["0M", "0.0 K", "0.000B", "000M"])
def test_no_parameters_are_no_target(asked):
    assert "pattern" in fault(parameters=asked)


@pytest.mark.parametrize("asked", ["0.0x", ".000x", "0x", "1.0x"])
def test_no_time_is_no_target(asked):
    assert "pattern" in fault(decode_latency=asked)


def test_small_targets_are_read_to_the_digit():
    asked = {"0.5M": 500_000, "1.25 K": 1250, "100B": 100 * 10**9, "0.007K": 7, "0.05K": 50}
    assert {one: Restructure(parameters=one).most_parameters for one in asked} == asked
    times = {"0.7x": 0.7, ".05x": 0.05, "0.001x": 0.001, "0.70x": 0.7}
    assert {one: Restructure(decode_latency=one).most_time for one in times} == times


def test_blocks_that_are_named_stay_as_they_are():
    spec = Restructure(blocks="every_second")
    assert not spec.repair
    assert spec.takes_whole
    assert not spec.needs_calibration
    assert Restructure(blocks=[0, 3], repair=True).needs_calibration
    both = Restructure(blocks=[0, 3], ffn=0.5)
    assert both.repair
    assert both.written == "blocks 0, 3, ffn 0.5"


def test_blocks_are_named_once_and_in_their_order():
    assert "2, 2 does not rise" in fault(blocks=[2, 2])
    assert "3, 1 does not rise" in fault(blocks=[3, 1])
    assert "at least 1 item" in fault(blocks=[])
    assert "greater than or equal to 0" in fault(blocks=[-1])
    assert "'every_second'" in fault(blocks="every_third")
    assert "says which blocks stay, and depth how many" in fault(blocks=[0], depth=0.5)
    assert "searches for a shape, and blocks gives one" in fault(blocks=[0], keep=0.5)
    assert "importance says how to choose" in fault(blocks=[0], importance="activation")


def test_a_lock_of_named_blocks_loads_again():
    stage = {"restructure": {"blocks": [0, 2]}}
    recipe = Recipe(version=1, teacher={"model": "a/b"}, stages=[stage])
    explicit = resolve.explicit(recipe)
    assert "importance" not in explicit["stages"][0]["restructure"]
    assert Recipe.model_validate(explicit) == recipe
    assert not recipe.needs_calibration

"""A target that cannot be reached, or is reached already, is told before anything runs."""

from __future__ import annotations

import dataclasses

import pytest
from anatomies import CONFIG, headers, llama

from compress import plan
from compress.errors import RecipeError
from compress.plan import budget, overview
from compress.plan.sizes import Counter
from compress.recipe.load import load, locate
from compress.recipe.restructure import Restructure
from compress.searched import Search, counting
from compress.shape import shape_of

SMALL = llama(blocks=4)


def recipe(*stages, **artifact):
    sets = [f"stages=[{', '.join(stages)}]", "calibration.set=smoke"]
    return load(
        "quickstart", [*sets, *(f"artifact.{key}={value}" for key, value in artifact.items())]
    )


def mistakes(*stages, anatomy=SMALL, **artifact):
    with pytest.raises(RecipeError) as caught:
        plan.check_budget(recipe(*stages, **artifact), headers(anatomy))
    return [mistake.removeprefix("recipe  ") for mistake in caught.value.mistakes]


@pytest.mark.parametrize("asked", ["parameters: 500M", "size: 150 MB", "size: 1 GB"])
def test_a_target_that_the_model_reaches_as_it_is_leaves_all(asked):
    field, _, value = asked.partition(": ")
    (mistake,) = mistakes(f"{{restructure: {{{asked}}}}}", format="dense")
    assert mistake == f"stages[0].restructure.{field}: {value} leaves all. Ask for less."


def test_a_shape_that_is_searched_for_is_planned_as_the_most_it_may_take():
    cut, rounded = "{restructure: {keep: 0.7}}", "{quantize: {method: rtn, group_size: 32}}"
    both = recipe(cut, rounded), recipe(rounded)
    found, whole = (budget.at_most(one, headers(SMALL)) for one in both)
    assert (found.at_most, found.least_bytes) == (True, None)
    assert 0 <= found.size_bytes - whole.size_bytes < 100  # what the lock says of it
    assert not whole.at_most


@pytest.mark.parametrize("asked", ["keep: 0.01", "parameters: 1M", "size: 10 MB"])
def test_a_target_that_no_shape_reaches_says_the_least_that_is_tried(asked):
    (mistake,) = mistakes(f"{{restructure: {{{asked}}}}}", format="dense")
    field = asked.partition(":")[0]
    assert mistake.startswith(f"stages[0].restructure.{field}: no shape reaches {field} ")
    assert "1 block with 24 heads and 384 MLP channels, the least that is tried" in mistake


def test_what_stages_behind_make_of_a_shape_counts():
    eight = "{quantize: {method: rtn, bits: 8, group_size: 64, head: 8}}"
    plan.check_budget(recipe("{restructure: {size: 60 MB}}", format="dense"), headers(SMALL))
    (mistake,) = mistakes("{restructure: {size: 60 MB}}", eight)
    assert "size: 60 MB leaves all" in mistake


def test_what_stages_before_have_cut_counts():
    half = "{restructure: {depth: 0.5}}"
    plan.check_budget(recipe("{restructure: {parameters: 40M}}"), headers(SMALL))
    (mistake,) = mistakes(half, "{restructure: {parameters: 40M}}")
    assert mistake.startswith("stages[1].restructure.parameters: 40M leaves all")


def test_a_later_stage_that_cuts_too_counts_in_bytes():
    narrower = "{restructure: {hidden: 0.5}}"
    alone, both = (
        Counter(recipe("{restructure: {size: 60 MB}}", *behind, format="dense"), headers(SMALL))
        for behind in ((), (narrower,))
    )
    shape = dataclasses.replace(shape_of(CONFIG, SMALL), blocks=2)
    assert both.shaped(shape) < alone.shaped(shape)


def shapes(*stages):
    counter, model = Counter(recipe(*stages), headers(SMALL)), headers(SMALL)
    fits = counting(model, Restructure(keep=0.8))
    return Search(model, fits, counter.divides).candidates()


DOWN = "{quantize: {method: rtn, group_size: 128, targets: ['*.down_proj']}}"


@pytest.mark.parametrize(
    ("stage", "of"), [(DOWN, 128), ("{prune: {pattern: '1:3', targets: ['*.down_proj']}}", 3)]
)
def test_widths_are_tried_that_groups_and_patterns_of_later_stages_divide(stage, of):
    found = shapes("{restructure: {keep: 0.8}}", stage)
    assert len({shape.channels for shape in found}) > 1
    assert all(shape.channels % of == 0 for shape in found)
    assert {shape.heads for shape in found} == {24, 32}


def test_heads_are_tried_that_groups_of_later_stages_divide():
    found = shapes("{restructure: {keep: 0.8}}", "{quantize: {method: rtn, group_size: 64}}")
    assert {shape.heads for shape in found} == {32}  # 24 of 18 channels are no groups of 64


def test_a_time_is_not_asked_of_headers():
    plan.check_budget(recipe("{restructure: {decode_latency: 0.01x}}"), headers(SMALL))


def test_a_plan_names_the_line_of_a_target(tmp_path):
    located = locate("quickstart", ["stages=[{restructure: {parameters: 500M}}]"])
    with pytest.raises(RecipeError, match=r"^--set stages=.*  stages\[0\]\.restructure\.param"):
        overview.make(located.recipe, headers(SMALL), cache=tmp_path, places=located.places)

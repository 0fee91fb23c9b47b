import dataclasses

import pytest
import torch
from students import IDS, cut

from compress import searched
from compress.errors import RecipeError
from compress.recipe.restructure import Restructure
from compress.results import Limits
from compress.shape import shape_of
from compress.stages import depth, latency, search
from compress.stages.context import Context
from compress.teacher.folder import open_folder


@pytest.fixture
def context(tmp_path):
    return Context(IDS, "cpu", torch.float32, tmp_path, limits=Limits(64, 1 << 30))


@pytest.fixture
def deep(tiny_model):
    """Six blocks, four groups of heads, an MLP of 256 channels."""
    return open_folder(
        tiny_model(
            "llama", num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
            head_dim=16, intermediate_size=256,
        )
    )  # fmt: skip


def test_every_candidate_fits_and_none_is_wasteful(deep, context):
    shapes = search.candidates(deep, Restructure(keep=0.6), context)
    weights = [searched.block_weights(deep, shape) for shape in shapes]
    limit = 0.6 * deep.anatomy.weights
    wider = [dataclasses.replace(shape, channels=shape.channels + 64) for shape in shapes]
    assert all(weight <= limit for weight in weights)
    assert all(
        searched.block_weights(deep, shape) > limit for shape in wider if shape.channels <= 256
    )
    assert len({shape.blocks for shape in shapes}) > 2
    assert {shape.kv_heads for shape in shapes} == {2, 4}  # 3 groups of 2 do not divide 64
    assert all(shape.heads == 2 * shape.kv_heads for shape in shapes)


def test_parameters_count_all_there_are(deep, context):
    before = search.told_size(deep, shape_of(deep.config, deep.anatomy)).parameters
    assert before == sum(t.numel() for i in range(6) for t in deep.block(i).values()) + sum(
        t.numel() for t in deep.outside().values()
    )
    shapes = search.candidates(deep, Restructure(parameters="150K"), context)
    assert all(search.told_size(deep, shape).parameters <= 150_000 for shape in shapes)


def test_what_nothing_reaches_is_told(deep, context):
    with pytest.raises(RecipeError, match="no shape reaches parameters 1 K"):
        search.candidates(deep, Restructure(parameters="1 K"), context)


@pytest.mark.parametrize("asked", ["900M", "1 B"])
def test_a_model_that_reaches_a_target_as_it_is_is_refused_and_not_cut(deep, context, asked):
    with pytest.raises(RecipeError, match=f"restructure.parameters: {asked} leaves all. Ask for"):
        search.candidates(deep, Restructure(parameters=asked), context)


def test_a_model_that_is_narrower_than_a_step_loses_blocks_and_keeps_its_width(tiny_model, context):
    narrow = open_folder(tiny_model("llama", num_hidden_layers=6, intermediate_size=48))
    shapes = search.candidates(narrow, Restructure(keep=0.6), context)
    assert {shape.channels for shape in shapes} == {48}
    assert max(shape.blocks for shape in shapes) < 6


def test_only_widths_are_tried_that_later_stages_can_divide(deep, context):
    class Sizes:
        def divides(self, shape):
            return shape.channels % 128 == 0

    here = dataclasses.replace(context, sizes=Sizes())
    found = [search.candidates(deep, Restructure(keep=0.6), one) for one in (context, here)]
    assert [any(shape.channels % 128 for shape in shapes) for shapes in found] == [True, False]


def test_the_candidate_of_least_divergence_is_made(deep, tmp_path):
    student, result = cut(deep, tmp_path, keep=0.7)
    found = result.shape
    best = min(found.candidates, key=lambda one: one.kl)
    assert best.chosen
    assert [one.chosen for one in found.candidates].count(True) == 1
    assert found.after == best.shape
    assert student.anatomy.weights <= 0.7 * deep.anatomy.weights
    _again, same = cut(deep, tmp_path, keep=0.7)
    assert same == result


def test_blocks_that_add_nothing_go_first(deep, context):
    class Silent:
        config, anatomy, outside = deep.config, deep.anatomy, deep.outside
        inputs, kv = deep.inputs, deep.kv

        def block(self, index):
            tensors = deep.block(index)
            if index in (1, 4):
                writing = [n for n in tensors if n.endswith(("o_proj.weight", "down_proj.weight"))]
                tensors |= {name: torch.zeros_like(tensors[name]) for name in writing}
            return tensors

    for measured in (True, False):
        order = depth.order(Silent(), context, 3, measured=measured)
        assert set(order.gone[:2]) == {1, 4}
        assert order.left(4) == (0, 2, 3, 5)
        assert len(order.left(3)) == 3
        assert [order.influence[i] == pytest.approx(0, abs=1e-6) for i in range(6)] == [
            i in (1, 4) for i in range(6)
        ]


def test_a_shape_is_searched_by_the_time_of_a_token(deep, context, monkeypatch):
    assert latency.decode_seconds(deep, shape_of(deep.config, deep.anatomy)) > 0
    # of a model so small, most of the time is none of the weights'
    monkeypatch.setattr(search, "decode_seconds", lambda weights, shape: 1.0 + shape.blocks)
    shapes = search.candidates(deep, Restructure(decode_latency="0.8x"), context)
    assert {1.0 + shape.blocks <= 0.8 * 7.0 for shape in shapes} == {True}

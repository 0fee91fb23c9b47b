import dataclasses

import pytest
import torch
from students import IDS, cut

from compress import searched
from compress.errors import RecipeError
from compress.journal import Journal
from compress.recipe.restructure import Restructure
from compress.results import Limits
from compress.shape import Shape, shape_of
from compress.stages import depth, latency, search
from compress.stages.context import Context
from compress.stages.search import Tried
from compress.student import Student
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


def candidates(weights, spec, context):
    journal = Journal(context.scratch / "journal.jsonl", {})
    return search.candidates(Student(weights, context.scratch, journal), spec, context)


def test_every_candidate_fits_and_none_is_wasteful(deep, context):
    shapes = candidates(deep, Restructure(keep=0.6), context)
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
    shapes = candidates(deep, Restructure(parameters="150K"), context)
    assert all(search.told_size(deep, shape).parameters <= 150_000 for shape in shapes)


def test_what_nothing_reaches_is_told(deep, context):
    with pytest.raises(RecipeError, match="no shape reaches parameters 1 K"):
        candidates(deep, Restructure(parameters="1 K"), context)


@pytest.mark.parametrize("asked", ["900M", "1 B"])
def test_a_model_that_reaches_a_target_as_it_is_is_refused_and_not_cut(deep, context, asked):
    with pytest.raises(RecipeError, match=f"restructure.parameters: {asked} leaves all. Ask for"):
        candidates(deep, Restructure(parameters=asked), context)


def test_a_model_that_is_narrower_than_a_step_loses_blocks_and_keeps_its_width(tiny_model, context):
    narrow = open_folder(tiny_model("llama", num_hidden_layers=6, intermediate_size=48))
    shapes = candidates(narrow, Restructure(keep=0.6), context)
    assert {shape.channels for shape in shapes} == {48}
    assert max(shape.blocks for shape in shapes) < 6


def test_only_widths_are_tried_that_later_stages_can_divide(deep, context):
    class Sizes:
        def divides(self, shape):
            return shape.channels % 128 == 0

    here = dataclasses.replace(context, sizes=Sizes())
    found = [candidates(deep, Restructure(keep=0.6), one) for one in (context, here)]
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
    shapes = candidates(deep, Restructure(decode_latency="0.8x"), context)
    assert {1.0 + shape.blocks <= 0.8 * 7.0 for shape in shapes} == {True}


def test_a_run_that_was_cut_short_goes_on_with_the_shapes_it_had_found(deep, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "decode_seconds", lambda weights, shape: 1 + shape.blocks)
    whole = search._Asked.after
    monkeypatch.setattr(search._Asked, "after", stop)
    with pytest.raises(KeyboardInterrupt):
        cut(deep, tmp_path, decode_latency="0.8x")
    monkeypatch.setattr(search._Asked, "after", whole)
    # a slower clock would take away three blocks, and the order in which they go is of two
    monkeypatch.setattr(search, "decode_seconds", lambda weights, shape: 4 + shape.blocks / 2)
    _, result = cut(deep, tmp_path, decode_latency="0.8x")
    assert result.shape.after.blocks == 4
    assert {one.decode_share for one in result.shape.candidates} == {6 / 7}
    assert result.shape.decode_share_asked == 0.8


def test_of_shapes_that_are_fast_enough_the_best_is_made_and_else_the_fastest():
    whole = Shape(6, 8, 4, 16, 256, 64)
    few, many, slow = (dataclasses.replace(whole, blocks=n) for n in (2, 3, 4))
    tried = [Tried(few, 0.9, 0.5), Tried(many, 0.5, 0.69), Tried(slow, 0.1, 0.72)]
    assert search.best(tried, Restructure(decode_latency="0.7x")) == many
    assert search.best(tried, Restructure(decode_latency="0.4x")) == few
    assert search.best([Tried(few, 0.9), Tried(many, 0.5)], Restructure(keep=0.5)) == many

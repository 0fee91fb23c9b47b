import dataclasses

import pytest

from compress.report import html, markdown, zeros
from compress.results import (
    Results,
    StageResult,
    ZeroAllocation,
    ZeroCost,
    ZeroShare,
    from_json,
    to_json,
)

COSTS = (ZeroCost(0.4, 0.011), ZeroCost(0.5, 0.02))
BY_COST = ZeroAllocation(
    "sensitivity", 0.5, 53_084_160,
    (
        ZeroShare(("model.layers.0.self_attn.q_proj",), 0, "qkv", 0.4, costs=COSTS),
        ZeroShare(("model.layers.0.mlp.down_proj",), 0, "down", 0.5, costs=COSTS[1:]),
    ),
    0.0812, 0.0931,
)  # fmt: skip
BY_OUTLIERS = ZeroAllocation(
    "owl", 0.7, 1000, (ZeroShare(("model.layers.0.mlp.down_proj",), 0, "all", 0.62, 0.0213),)
)


@pytest.fixture
def shared(results):
    stage = StageResult("prune", "sparsegpt", results.linears, zeros=BY_COST)
    return dataclasses.replace(results, stages=(stage,))


def test_what_zeros_cost_is_told_beside_what_one_sparsity_would():
    told = zeros.sentence(BY_COST)
    assert told.startswith("53.1 M zeros, 50.0 % in all, where they cost least.")
    assert "KL 0.0812 nats per token" in told
    assert told.endswith("the same sparsity everywhere: 0.0931.")
    assert zeros.sentence(BY_OUTLIERS).endswith("a block with more outliers than others got fewer.")


def test_every_group_says_what_decided():
    table = zeros.table(BY_COST)
    assert table.header == ("block", "linears", "zeros", "KL at 40.0 %", "KL at 50.0 %")
    assert table.rows[0] == ("0", "q, k, v", "40.0 %", "0.0110", "0.0200")
    assert table.rows[1][3] == "–"
    table = zeros.table(BY_OUTLIERS)
    assert table.header == ("block", "linears", "zeros", "outliers")
    assert table.rows == (("0", "all", "62.0 %", "2.13 %"),)


def test_both_pages_show_where_the_zeros_went(shared, results, measured):
    for render in (html.render, markdown.render):
        assert "Where the zeros went" in render(shared, measured)
        assert "Where the zeros went" not in render(results, measured)


def test_shared_zeros_come_back_from_json(shared):
    assert from_json(Results, to_json(shared)) == shared

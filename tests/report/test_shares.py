import json
from dataclasses import replace

from compress.report import html, markdown, shares
from compress.results import Results, from_json, to_json


def test_the_budget_is_told_with_its_cost_foretold_and_measured(allocated):
    told = shares.sentence(allocated, allocated.allocation)
    assert told.startswith("Budget 3.7 bits: 3.700 bits per weight in the blocks, 72.0 MB on disk.")
    assert "Predicted mean KL 0.0912 nats per token, measured on heldout 0.0931." in told
    unjudged = replace(allocated, divergence=None)
    assert shares.sentence(unjudged, allocated.allocation).endswith("0.0912 nats per token.")


def test_kinds_count_their_groups_by_width(allocated):
    table = shares.kinds(allocated.allocation)
    assert table.header == (
        "linears",
        "2 bits",
        "3 bits",
        "4 bits",
        "8 bits",
        "stored",
        "KL predicted",
    )
    by_kind = {row[0]: row[1:5] for row in table.rows}
    assert by_kind["o"] == ("29", "–", "–", "–")
    assert by_kind["down"] == ("–", "–", "–", "30")
    assert {"q, k, v", "gate, up", "head"} <= by_kind.keys()


def test_every_group_says_what_each_width_would_have_cost(allocated):
    table = shares.groups(allocated.allocation)
    assert len(table.rows) == len(allocated.allocation.shares)
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert table.rows[-1][:3] == ("–", "head", "8")


def test_both_pages_show_where_the_bits_went(allocated, measured, headings):
    page, text = html.render(allocated, measured), markdown.render(allocated, measured)
    assert page.count("Bits by block and linear") == 2
    for shown in (page, text):
        assert "Where the bits went" in shown
    assert "Where the bits went" not in headings


def test_an_allocation_comes_back_from_json(allocated):
    text = to_json(allocated)
    assert from_json(Results, text) == allocated
    assert json.loads(text)["stages"][0]["allocation"]["shares"][0]["widths"]

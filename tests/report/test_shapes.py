import dataclasses

import pytest

from compress.report import html, markdown, shapes
from compress.results import (
    BlockCut,
    Candidate,
    LinearResult,
    ModelShape,
    Restructured,
    Results,
    StageResult,
)
from compress.results.text import from_json, to_json

BEFORE = ModelShape(3, 9, 3, 1536, 576, 134_515_008)
AFTER = ModelShape(2, 9, 3, 1152, 576, 110_000_000)


@pytest.fixture
def cut(results):
    blocks = (
        BlockCut(0, 0, 9, 3, 1152, 0.21, None, 0.031),
        BlockCut(1, None, 0, 0, 0, 0.05, 0.124, None),
        BlockCut(2, 1, 9, 3, 1152, 0.4, None, 0.052),
    )
    candidates = (Candidate(AFTER, 0.3, True), Candidate(BEFORE, 0.5, False, 0.93))
    found = Restructured("keep 0.8", True, BEFORE, AFTER, blocks, candidates)
    stage = StageResult("restructure", "restructure", (), shape=found)
    return dataclasses.replace(results, stages=(stage, *results.stages))


def test_the_summary_begins_with_what_became_fewer(cut, results):
    rows = {row.label: (row.before, row.after) for row in shapes.summary(cut)}
    assert rows["blocks"] == ("3", "2")
    assert rows["MLP channels"] == ("1,536", "1,152")
    assert "query heads" not in rows
    assert "parameters" in rows
    assert not list(shapes.summary(results))


def test_what_was_removed_is_told_block_by_block(cut):
    (found,) = shapes.stages(cut)
    assert shapes.text(found) == "Asked for keep 0.8; what is left was repaired. Removed: 1."
    narrower = dataclasses.replace(found, stream_share=0.9876)
    assert shapes.text(narrower).endswith("Removed: 1. Of the stream's squares 98.8 % stay.")
    same = dataclasses.replace(found, after=BEFORE, blocks=())
    assert shapes.text(same).endswith("was repaired. It leaves all there was.")
    rows = shapes.block_table(found).rows
    assert rows[1][:5] == ("1", "–", "–", "–", "–")
    assert rows[2][:5] == ("2", "1", "9", "3", "1,152")


def test_rounds_name_blocks_as_the_first_found_them_and_linears_by_what_is_left(cut, measured):
    (first,) = shapes.stages(cut)
    blocks = (BlockCut(0, None, 0, 0, 0), BlockCut(1, 0, 9, 3, 1152))
    smaller = dataclasses.replace(AFTER, blocks=1)
    second = dataclasses.replace(first, before=AFTER, after=smaller, blocks=blocks)
    records = [
        LinearResult(f"model.layers.{block}.mlp.down_proj", block, "down", "restructure", outcome,
                     None, None, error)
        for block, outcome, error in ((0, "kept_dense", 0.1), (1, "kept_dense", 0.2))
    ]  # fmt: skip
    last = dataclasses.replace(records[0], outcome="solved", relative_error=0.3)
    made = [
        StageResult("restructure", "restructure", tuple(linears), shape=shape)
        for linears, shape in ((records, first), ([], second), ([last], None))
    ]
    found = dataclasses.replace(cut, stages=tuple(made))
    told = shapes.stages(found)
    assert [shapes.text(one).partition("Removed: ")[2] for one in told] == ["1.", "0."]
    assert [row[:2] for row in shapes.block_table(told[1]).rows] == [("0", "–"), ("2", "0")]
    assert found.linears == (last,)
    assert dataclasses.replace(found, stages=tuple(made[:2])).linears == found.fallbacks
    (left,) = found.fallbacks  # of block 1 behind the first round, 0 behind the second
    assert (left.name, left.relative_error) == ("model.layers.0.mlp.down_proj", 0.2)
    page = markdown.render(found, measured)
    assert "What was taken away, 1 of 2" in page
    assert "What was taken away, 2 of 2" in page


def test_a_shape_that_is_slower_than_asked_is_told(cut):
    (found,) = shapes.stages(cut)
    chosen = dataclasses.replace(found.candidates[0], decode_share=0.72)
    asked = dataclasses.replace(found, candidates=(chosen,), decode_share_asked=0.7)
    told = " A token takes 0.720 of the teacher's time, more than the 0.700 asked for."
    assert shapes.text(asked).endswith(told)
    assert told not in shapes.text(dataclasses.replace(asked, decode_share_asked=0.75))


def test_channels_that_were_shared_out_are_told_block_by_block(cut):
    (found,) = shapes.stages(cut)
    wide = dataclasses.replace(found.blocks[2], channels=1216, channels_kl=0.025)
    found = dataclasses.replace(found, blocks=(*found.blocks[:2], wide))
    table = shapes.block_table(found)
    assert table.header[-1] == "KL of its channels"
    assert [row[4] for row in table.rows] == ["1,152", "–", "1,216"]
    assert table.rows[2][-1] == "0.0250"
    stage = dataclasses.replace(cut.stages[0], shape=found)
    rows = shapes.summary(dataclasses.replace(cut, stages=(stage,)))
    assert ("MLP channels", "1,152 to 1,216") in {(row.label, row.after) for row in rows}


def test_candidates_come_the_best_first(cut):
    (found,) = shapes.stages(cut)
    first, second = shapes.candidate_table(found).rows
    assert first[0] == "2 blocks, 9/3 heads, 1,152 channels, width 576"
    assert first[1] == "chosen"
    assert second[3] == "0.93 ×"


def test_both_pages_show_it_and_records_come_back(cut, results):
    assert "What was taken away" in markdown.render(cut, None)
    page = html.render(cut, None)
    assert "What was taken away" in page
    assert "Shapes that were tried" in page
    assert "What was taken away" not in html.render(results, None)
    assert from_json(Results, to_json(cut)) == cut

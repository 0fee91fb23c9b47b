import dataclasses
import re

import pytest

from compress.report import html, markdown, taught
from compress.report.summary import summary
from compress.results import Distilled, HeldOut, Results, StageResult
from compress.results.text import from_json, to_json

CHECKS = (
    HeldOut(0, 0.52, None, 1e-5),
    HeldOut(20, 0.31, 0.4, 1e-4),
    HeldOut(40, 0.33, 0.25, 9e-5),
)
FOUND = Distilled(
    "forward kl", "all", "wikitext (train)", "f" * 64, 10_000, 25_000, 4096, 106_000_000, 60, 20,
    "patience", 0.52, 0.311, CHECKS,
)  # fmt: skip


@pytest.fixture
def healed(results):
    stage = StageResult("distill", "forward kl", (), distilled=FOUND)
    return dataclasses.replace(results, stages=(stage, *results.stages))


def test_what_was_gained_is_told_with_its_protocol():
    told = taught.text(FOUND)
    assert "25,000 tokens (2.5 times 10,000) of wikitext (train)" in told
    assert "On 4,096 held-out tokens the mean KL went from 0.520 to 0.311 nats" in told
    assert "step 20 of 60. It ended early" in told


def test_integers_that_became_others_are_counted():
    rounded = dataclasses.replace(FOUND, train="codes", changed_codes=7_400_000)
    assert "numbers learned, integers, their scales and norms. 7.40 M integers became others." in (
        taught.text(rounded)
    )
    assert "integers" not in taught.text(FOUND)


def test_embeddings_that_learned_beside_scales_are_named():
    beside = dataclasses.replace(FOUND, train="scales_and_norms", embeddings=True)
    assert "scales of integers and norms, and embeddings that stay floats." in taught.text(beside)
    assert "embeddings" not in taught.text(FOUND)


def test_a_student_that_gained_nothing_says_so():
    stayed = dataclasses.replace(FOUND, kept_step=0, kl_after=FOUND.kl_before)
    assert "Nothing lowered the held-out KL, so the student stays as it was." in taught.text(stayed)


def test_the_summary_tells_the_held_out_kl_of_every_stage_that_trained(healed):
    (row,) = (row for row in summary(healed, None) if row.label.startswith("held-out KL"))
    assert (row.label, row.before, row.after) == (
        "held-out KL, distill", "0.520 nats", "0.311 nats"
    )  # fmt: skip
    assert row.note == "kept step 20 of 60; 4,096 tokens of wikitext (train), not trained on"
    twice = dataclasses.replace(healed, stages=healed.stages[:1] * 2)
    labels = [row.label for row in summary(twice, None) if "distill" in row.label]
    assert labels == ["held-out KL, distill 1 of 2", "held-out KL, distill 2 of 2"]


def test_every_look_has_a_row_and_the_kept_one_is_marked():
    rows = taught.table(FOUND).rows
    assert [row[:2] for row in rows] == [("0", ""), ("20", "kept"), ("40", "")]
    assert rows[0][3] == "–"


def test_the_curve_is_drawn_for_both_widths_and_named():
    for narrow in (False, True):
        figure = taught.curve(FOUND, narrow=narrow)
        assert (
            'aria-label="Held-out KL by step: from 0.52 to 0.31 nats per token at best"' in figure
        )
        assert ">held-out KL<" in figure
        assert ">loss<" in figure


def test_pages_hold_it_and_json_gives_it_back(healed, measured):
    page = markdown.render(healed, measured)
    assert "## What the teacher taught" in page
    assert "What the teacher taught" in html.render(healed, measured)
    assert from_json(Results, to_json(healed)) == healed


@pytest.mark.parametrize("loss", [0.30, 0.33, 0.36])
def test_names_of_curves_that_end_together_stand_clear_of_each_other(loss):
    checks = (*CHECKS[:2], dataclasses.replace(CHECKS[2], loss=loss))
    figure = taught.curve(dataclasses.replace(FOUND, checks=checks))
    heights = [float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(?=loss|held)', figure)]
    assert abs(heights[0] - heights[1]) >= 12

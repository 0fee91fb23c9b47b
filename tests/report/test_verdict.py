"""The verdict: above all numbers, with a row for each gate; nothing that fell back is hidden."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from compress.report import html, markdown, rows, verdict
from compress.results import GateResult, LinearResult, Raised, Round, StageResult, Verdict

GATES = (
    GateResult("perplexity_increase_max", 0.1, 0.0735, True, "21.37 → 22.94 on heldout"),
    GateResult("kl_mean_max", 0.05, 0.0931, False, "20,460 tokens of heldout"),
    GateResult("top1_agreement_min", 0.85, 0.8774, True, "20,460 tokens of heldout"),
    GateResult("accuracy_drop_max", 0.02, -0.0067, True, "everyday_reasoning, 150 items"),
    GateResult("generation", 0, 0, True, "3 greedy samples beside the teacher's"),
    GateResult("linear_error_max", 0.1, 0.0712, True, "worst: model.layers.29.self_attn.o_proj"),
    GateResult("size_max", 100_000_000, 90_412_108, True),
)
ROUND = Round(
    (GATES[0], replace(GATES[1], found=0.2)),
    80_000_000,
    (
        Raised("model.layers.3.self_attn.q_proj", 3, 4),
        Raised("model.layers.3.self_attn.k_proj", 3, 4),
        Raised("model.layers.4.mlp.down_proj", 4, 8),
    ),
    3,
)


@pytest.fixture(scope="module")
def plain(results):
    """The run of the other tests without what takes long to draw."""
    return replace(results, divergence=None, stages=(), sizes=())


@pytest.fixture(scope="module")
def missed(plain):
    return replace(plain, verdict=Verdict("REGRESSION", GATES))


@pytest.fixture(scope="module")
def accepted(plain):
    passed = tuple(replace(gate, passed=True) for gate in GATES)
    return replace(plain, verdict=Verdict("ACCEPT", passed, (ROUND,)))


@pytest.fixture(scope="module")
def ended(results):
    """A run that a linear ended: there is no student."""
    bad = LinearResult("model.layers.1.mlp.up_proj", 1, "up", "gptq", "solved", 3, 64, 0.31)
    stage = StageResult("quantize", "gptq", (*results.stages[0].linears[:7], bad))
    gate = GateResult("linear_error_max", 0.1, 0.31, False, f"worst: {bad.name}")
    return replace(
        results, after=None, divergence=None, sizes=(), samples=(), stages=(stage,),
        verdict=Verdict("REGRESSION", (gate,)),
    )  # fmt: skip


def text_of(page):
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split())


def test_without_gates_no_page_speaks_of_any(plain, measured):
    pages = [
        html.render(plain, measured),
        markdown.render(plain, measured),
        markdown.model_card(plain, measured),
    ]
    for page in pages:
        assert "ACCEPT" not in page
        assert "Gates" not in page
        assert 'class="outcome' not in page


@pytest.mark.parametrize("outcome", ["ACCEPT", "REGRESSION", "INFEASIBLE"])
def test_the_verdict_stands_above_all_numbers(plain, outcome):
    judged = replace(plain, verdict=Verdict(outcome, GATES))
    pages = [
        text_of(html.render(judged, None)),
        markdown.render(judged, None),
        markdown.model_card(judged, None),
    ]
    for page in pages:
        assert 0 < page.index(outcome) < page.index("times smaller")


def test_every_gate_is_a_row_with_its_limit_and_what_was_found(missed):
    table = verdict.gate_table(missed.verdict)
    assert [row[0] for row in table.rows] == [gate.name for gate in GATES]
    told = {row[0]: row[1:4] for row in table.rows}
    assert told == {
        "perplexity_increase_max": ("✓ passed", "≤ 10.00 %", "7.35 %"),
        "kl_mean_max": ("✗ missed", "≤ 0.0500 nats", "0.0931 nats"),
        "top1_agreement_min": ("✓ passed", "≥ 85.00 %", "87.74 %"),
        "accuracy_drop_max": ("✓ passed", "≤ 2.00 %", "−0.67 %"),
        "generation": ("✓ passed", "sane", "sane"),
        "linear_error_max": ("✓ passed", "≤ 10.0 %", "7.12 %"),
        "size_max": ("✓ passed", "≤ 100 MB", "90.4 MB"),
    }
    for page in (html.render(missed, None), markdown.render(missed, None).replace("\\", "")):
        assert all(gate.name in page for gate in GATES)


def test_a_row_can_be_read_without_colour_and_shows_one_with_it(missed):
    page = html.render(missed, None)
    assert page.count('class="words good">✓ passed') == len(GATES) - 1
    assert page.count('class="words bad">✗ missed') == 1


def test_what_nothing_measured_is_said():
    gates = (GATES[1], GateResult("kl_p99_max", 1, None, False))
    assert verdict.sentence(Verdict("REGRESSION", gates)) == "1 of 2 gates missed, 1 not measured"
    (row,) = verdict.gate_table(
        Verdict("REGRESSION", (GateResult("kl_mean_max", 1, None, False),))
    ).rows
    assert row[1:] == ("not measured", "≤ 1.00 nats", "–", "–")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Verdict("ACCEPT", GATES[:1]), "the gate is passed"),
        (Verdict("ACCEPT", (GATES[0], GATES[2])), "all 2 gates passed"),
        (Verdict("REGRESSION", GATES[1:2]), "1 of 1 gate missed"),
        (
            Verdict("INFEASIBLE", GATES, (ROUND, ROUND), "rounds_max 2 is reached"),
            "1 of 7 gates missed after 2 rounds of more bits; rounds_max 2 is reached",
        ),
    ],
)
def test_one_sentence_sums_it_up(found, expected):
    assert verdict.sentence(found) == expected


def test_rounds_show_what_was_missed_and_who_got_more_bits(accepted, missed):
    (row,) = verdict.round_table(accepted.verdict).rows
    assert row == (
        "1",
        "kl_mean_max 0.200 nats",
        "80.0 MB",
        "model.layers.3.self_attn.q_proj and 1 more: 3 → 4 bits; "
        "model.layers.4.mlp.down_proj: 4 → 8 bits",
    )
    assert "Rounds" in text_of(html.render(accepted, None))
    assert "Rounds" not in text_of(html.render(missed, None))


def test_the_error_lists_each_missed_gate_and_where_the_report_lies(missed):
    assert verdict.told(missed.verdict, Path("out.rejected/report.html")) == (
        "REGRESSION: 1 of 7 gates missed.\n"
        "  kl_mean_max: found 0.0931 nats, the limit is ≤ 0.0500 nats (20,460 tokens of heldout)\n"
        "Give the student more bits, or widen what the gates allow. The report: "
        "out.rejected/report.html   docs/errors.md#gates"
    )


def test_linears_that_got_more_bits_are_fallbacks_with_their_reason(results):
    stage = results.stages[0]
    why = "mlp.up_proj showed a relative error of 0.2 at 3 bits"
    raised = replace(stage.linears[0], escalated_from=3, note=why)
    changed = replace(results, stages=(replace(stage, linears=(raised, *stage.linears[1:])),))
    assert rows.fallback_table(changed).rows[0] == (raised.name, "gptq, 3 bits", "4 bits", why)
    assert rows.fallback_text(changed).startswith("2 of 211 linears did not become what")
    assert rows.verdict(changed).endswith(
        "1 linear stayed dense. 1 linear got more bits than asked for."
    )


def test_a_run_that_ended_in_its_walk_is_reported_with_what_it_found(ended, measured):
    for page in (text_of(html.render(ended, measured)), markdown.render(ended, measured)):
        assert "A gate ended the run before a student was made." in page
        assert "REGRESSION" in page
        assert "31.0 %" in page
    card = markdown.model_card(ended, None)
    assert "no student was made" in card


def test_text_of_gates_cannot_become_markup(missed):
    hostile = replace(GATES[0], name="<script>", note="<b>|bold")
    judged = replace(missed, verdict=Verdict("REGRESSION", (hostile,), reason="<i>"))
    page = html.render(judged, None)
    assert "<script" not in page
    assert "<b>|bold" not in page
    assert r"\<b\>\|bold" in markdown.render(judged, None)

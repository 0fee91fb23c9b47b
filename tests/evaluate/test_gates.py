"""Limits held against plain numbers, and the plan of who gets more bits."""

import itertools
import math
from dataclasses import replace

import pytest

from compress import anatomy as anatomies
from compress.evaluate.escalate import SHARE, following, next_raises, until_accepted
from compress.evaluate.gates import STANDARD_ERRORS, check, drop_stderr
from compress.recipe.gates import WIDTHS, Gates
from compress.results import (
    Divergence,
    LinearResult,
    Perplexity,
    Provenance,
    Results,
    Sample,
    Side,
    StageResult,
    TaskScore,
    from_json,
    to_json,
)

BLOCKS, WIDTH, HIDDEN, VOCAB = 4, 64, 128, 320
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (32, WIDTH),
    "self_attn.v_proj": (32, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH), "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}  # fmt: skip
ANATOMY = anatomies.read(
    {"model_type": "llama", "num_hidden_layers": BLOCKS, "hidden_size": WIDTH},
    {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "lm_head.weight": (VOCAB, WIDTH),
        **{f"model.layers.{i}.{n}.weight": s for i in range(BLOCKS) for n, s in SHAPES.items()},
    },
)
LINEARS = {linear.name: linear for linear in (*ANATOMY.linears, ANATOMY.head)}
ALL = Gates(
    perplexity_increase_max=0.1, kl_mean_max=0.2, kl_p99_max=1.0, top1_agreement_min=0.9,
    accuracy_drop_max=0.02, generation="sane", linear_error_max=0.5, size_max="1 MB",
)  # fmt: skip
PACKED = WIDTHS["packed"]
FOUR = dict.fromkeys(LINEARS, 4)


def perplexity(value):
    return Perplexity(value, "heldout", 64, 64, 4, 252)


def divergence(mean=0.05, p99=0.5, agreement=0.95):
    return Divergence("heldout", 256, mean, 0.01, p99, agreement, 12, (1e-6, 100.0), (256,))


def linear(name, bits, error, **fields):
    known = LINEARS[name]
    outcome = "solved" if bits else "kept_dense"
    return LinearResult(name, known.block, known.role, "gptq", outcome, bits, 32, error, **fields)


def student(bits=FOUR, errors=None):
    """Results of a student whose linears have these bits; each bit makes an error 4 times less."""
    found = {
        name: (errors or {}).get(name, 1.0) * 4.0**-width if width else 0.0
        for name, width in bits.items()
    }
    records = tuple(linear(name, width, found[name]) for name, width in bits.items())
    size = sum(LINEARS[name].weights * (width or 16) for name, width in bits.items()) // 8
    source = Provenance("mine", "", "teacher", "", "self", "", 0, 0, 1, "cpu")
    task = TaskScore("cloze", "acc", 100, 0.6, 0.05)
    return Results(
        source,
        Side(10**6, 16.0, perplexity(20.0), (task,)),
        Side(size, 4.0, perplexity(21.0), (replace(task, accuracy=0.59, flips=4),)),
        divergence(mean=sum(found.values())),
        (StageResult("quantize", "gptq", records),),
        (),
        (Sample("Why?", "Because it is so.", "Because it is thus."),),
    )


def row(gates, results):
    (found,) = check(gates, results).gates
    return found


def test_a_student_that_keeps_every_limit_is_accepted():
    verdict = check(ALL, student())
    assert verdict.outcome == "ACCEPT"
    assert {gate.name for gate in verdict.gates} == ALL.limits.keys()
    assert not verdict.missed


@pytest.mark.parametrize(
    ("gate", "worse"),
    [
        ("perplexity_increase_max", {"after": Side(1, 4.0, perplexity(22.5))}),
        ("kl_mean_max", {"divergence": divergence(mean=0.21)}),
        ("kl_p99_max", {"divergence": divergence(p99=1.1)}),
        ("top1_agreement_min", {"divergence": divergence(agreement=0.89)}),
        ("generation", {"samples": (Sample("Why?", "Because.", ""),)}),
        ("linear_error_max", {"stages": (StageResult("quantize", "gptq", (
            linear("model.layers.0.mlp.up_proj", 2, 0.51),)),)}),
        ("size_max", {"after": Side(10**6 + 1, 4.0, perplexity(20.0))}),
    ],
)  # fmt: skip
def test_each_limit_is_missed_alone_and_named(gate, worse):
    gates = Gates(**{gate: ALL.limits[gate]})
    assert row(gates, student()).passed
    missed = row(gates, replace(student(), **worse))
    assert (missed.name, missed.passed) == (gate, False)
    assert check(gates, replace(student(), **worse)).outcome == "REGRESSION"


def test_a_limit_that_is_met_exactly_is_kept():
    exact = replace(student(), divergence=divergence(mean=0.1, agreement=0.9))
    assert row(Gates(kl_mean_max=0.1), exact).passed
    assert row(Gates(top1_agreement_min=0.9), exact).passed
    assert row(Gates(size_max=f"{exact.after.size_bytes} B"), exact).passed


def test_what_is_no_number_is_not_passed():
    broken = replace(student(), divergence=divergence(mean=math.nan, agreement=math.nan))
    assert not row(Gates(kl_mean_max=0.1), broken).passed
    assert not row(Gates(top1_agreement_min=0.9), broken).passed
    bad = linear("model.layers.0.mlp.up_proj", 4, math.nan)
    broken = replace(student(), stages=(StageResult("quantize", "gptq", (bad,)),))
    assert not row(Gates(linear_error_max=0.9), broken).passed


def test_what_nothing_measured_is_not_passed():
    source = student().provenance
    side = Side(10, 4.0, None)
    verdict = check(ALL, Results(source, side, side, None, (), ()))
    assert {gate.name for gate in verdict.missed} == ALL.limits.keys() - {"size_max"}
    assert all(gate.found is None for gate in verdict.missed)


def test_a_run_that_a_linear_ended_is_judged_by_what_was_found():
    failing = linear("model.layers.0.mlp.up_proj", 8, 0.7)
    ended = replace(
        student(), after=None, divergence=None, samples=(),
        stages=(StageResult("quantize", "gptq", (failing,)),),
    )  # fmt: skip
    assert check(ALL, ended).outcome == "REGRESSION"
    assert [g.found for g in check(ALL, ended).gates if g.name == "linear_error_max"] == [0.7]
    stuck = check(Gates(linear_error_max=0.5, on_violation="escalate"), ended)
    assert stuck.outcome == "INFEASIBLE"
    assert "widest grid" in stuck.reason


def scored(accuracy, *, flips, items=100, stderr=0.05):
    return TaskScore("cloze", "acc", items, accuracy, stderr, flips)


def test_a_drop_counts_once_it_exceeds_the_limit_by_more_than_chance():
    before = scored(0.60, flips=0)
    error = drop_stderr(before, scored(0.52, flips=16))
    assert error == pytest.approx(math.sqrt(16) / 100)
    allowed = 0.02 + STANDARD_ERRORS * error
    for drop, passed in ((allowed - 0.001, True), (allowed + 0.001, False)):
        after = scored(0.60 - drop, flips=16)
        results = replace(
            student(),
            before=replace(student().before, tasks=(before,)),
            after=replace(student().after, tasks=(after,)),
        )
        assert row(Gates(accuracy_drop_max=0.02), results).passed is passed


def test_the_same_items_tell_more_than_the_two_errors_alone():
    before, after = scored(0.60, flips=0), scored(0.58, flips=4)
    assert drop_stderr(before, after) < math.hypot(before.stderr, after.stderr)
    many = scored(0.58, flips=99)  # nearly all answers changed: the two errors bound it
    assert drop_stderr(before, many) == pytest.approx(math.hypot(0.05, 0.05))
    uncounted = scored(0.50, flips=0)  # ten answers are worse, so flips were not counted
    assert drop_stderr(before, uncounted) == pytest.approx(math.hypot(0.05, 0.05))


def test_a_better_student_is_never_a_drop():
    results = student()
    better = replace(results.after, tasks=(scored(0.9, flips=30),))
    found = row(Gates(accuracy_drop_max=0.0), replace(results, after=better))
    assert found.passed
    assert found.found < 0


def test_each_task_has_a_row_and_a_measure_that_is_no_accuracy_has_none():
    results = student()
    tasks = tuple(replace(scored(0.6, flips=1), name=name) for name in ("a", "b"))
    other = TaskScore("wikitext", "word_perplexity", 10, 30.0, 0.1)
    results = replace(
        results,
        before=replace(results.before, tasks=(*tasks, other)),
        after=replace(results.after, tasks=(*tasks, other)),
    )
    rows = check(Gates(accuracy_drop_max=0.1), results).gates
    assert [gate.note.split(",")[0] for gate in rows] == ["a", "b"]


def test_linears_that_fell_back_are_counted_beside_the_worst():
    name = "model.layers.1.mlp.down_proj"
    records = (
        linear(name, 8, 0.01, escalated_from=4),
        linear("model.layers.2.self_attn.q_proj", None, 0.0),
    )
    results = replace(student(), stages=(StageResult("quantize", "gptq", records),))
    found = row(Gates(linear_error_max=0.1), results)
    assert found.note == f"worst: {name}, 1 given more bits, 1 kept dense"


def escalating(**limits):
    return Gates(**limits, on_violation="escalate")


def raised(results, gates, rounds=0, widths=PACKED):
    return next_raises(results, gates, rounds=rounds, anatomy=ANATOMY, widths=widths)


def test_narrow_groups_get_more_bits_from_the_first_block_on():
    bits = {name: 8 if ".0." in name else 3 if ".1." in name else 2 for name in LINEARS}
    raises, _ = raised(student(bits), escalating(kl_mean_max=0))
    assert {LINEARS[raise_.name].block for raise_ in raises} == {2}
    assert raises[0].name == "model.layers.2.mlp.gate_proj"  # the most weights, equal errors
    order = []
    while 2 in bits.values():
        raises, _ = raised(student(bits), escalating(kl_mean_max=0))
        narrow = [raise_ for raise_ in raises if raise_.from_bits == 2]
        assert raises[: len(narrow)] == narrow
        order += [LINEARS[raise_.name].block for raise_ in narrow]
        bits |= {raise_.name: raise_.to_bits for raise_ in raises}
    assert order == sorted(order, key=lambda block: (block is None, block or 0))


def test_no_error_makes_a_wide_group_wider_while_others_are_narrow():
    worst = "model.layers.2.mlp.down_proj"
    bits = {name: 4 if name == worst else 3 for name in LINEARS}
    raises, _ = raised(student(bits, errors={worst: 9.0}), escalating(kl_mean_max=0))
    assert {raise_.from_bits for raise_ in raises} == {3}


def test_the_worst_groups_get_the_next_width_until_they_hold_an_eighth_of_the_weights():
    worst = "model.layers.2.mlp.down_proj"
    raises, reason = raised(student(errors={worst: 9.0}), escalating(kl_mean_max=0))
    assert reason == ""
    assert (raises[0].name, raises[0].from_bits, raises[0].to_bits) == (worst, 4, 8)
    total = sum(linear.weights for linear in LINEARS.values())
    given = [LINEARS[raise_.name].weights for raise_ in raises]
    assert sum(given) >= SHARE * total
    assert sum(given) < SHARE * total + VOCAB * WIDTH  # no more than the last group beyond it


@pytest.mark.parametrize("names", [("q", "k", "v"), ("gate", "up")])
def test_what_engines_fuse_gets_more_bits_together(names):
    worst = next(x.name for x in ANATOMY.linears if x.block == 3 and x.role == names[-1])
    raises, _ = raised(student(errors={worst: 9.0}), escalating(kl_mean_max=0))
    together = {x.name for x in ANATOMY.linears if x.block == 3 and x.role in names}
    assert {raise_.name for raise_ in raises} >= together
    assert len({raise_.to_bits for raise_ in raises if raise_.name in together}) == 1


def test_widths_that_the_artifact_cannot_hold_are_passed_over():
    raises, _ = raised(student(), escalating(kl_mean_max=0), widths=(4, 8))
    assert {raise_.to_bits for raise_ in raises} == {8}
    raises, _ = raised(student(dict.fromkeys(LINEARS, 2)), escalating(kl_mean_max=0))
    assert {raise_.to_bits for raise_ in raises} == {3}


def test_nothing_is_raised_without_a_wider_grid_a_round_or_room_and_the_reason_is_told():
    gates = escalating(kl_mean_max=0)
    assert raised(student(dict.fromkeys(LINEARS, 8)), gates) == (
        [],
        "no linear can be given more bits",
    )
    assert raised(student(), gates, rounds=8) == ([], "rounds_max 8 is reached")
    size = student().after.size_bytes
    full = escalating(kl_mean_max=0, size_max=f"{size + 10} B")
    assert raised(student(), full) == ([], f"size_max {size + 10} B leaves no room for more bits")


def test_a_group_that_the_size_forbids_is_passed_over_for_one_that_fits():
    worst, small = "lm_head", "model.layers.0.self_attn.o_proj"
    results = student(errors={worst: 9.0, small: 5.0})
    room = LINEARS[small].weights * 4 // 8
    gates = escalating(kl_mean_max=0, size_max=f"{results.after.size_bytes + room} B")
    assert [raise_.name for raise_ in raised(results, gates)[0]] == [small]


def test_dense_linears_stay_as_they_are():
    bits = {name: 4 if "layers.1." in name else None for name in LINEARS}
    raises, _ = raised(student(bits), escalating(kl_mean_max=0))
    assert raises
    assert all(".layers.1." in raise_.name for raise_ in raises)


def made(errors=None, seen=None):
    """Make students whose linears get what an attempt says, 2 bits else."""

    def make(attempt):
        if seen is not None:
            seen.append(attempt)
        bits = {name: attempt.raised.get(name, 2) for name in LINEARS}
        return student(bits, errors)

    return make


def until(gates, **known):
    return until_accepted(made(**known), gates, anatomy=ANATOMY, widths=PACKED)


def test_without_gates_one_student_is_made_and_not_judged():
    seen = []
    assert until(None, seen=seen).verdict is None
    assert len(seen) == 1


def test_a_gate_that_fails_makes_no_second_student():
    seen = []
    verdict = until(Gates(kl_mean_max=0.0), seen=seen).verdict
    assert (verdict.outcome, len(seen), verdict.rounds) == ("REGRESSION", 1, ())


def test_students_are_made_with_more_bits_until_one_is_accepted():
    seen = []
    first = student(dict.fromkeys(LINEARS, 2)).divergence.kl_mean
    results = until(escalating(kl_mean_max=first / 2), seen=seen)
    verdict = results.verdict
    assert verdict.outcome == "ACCEPT"
    assert len(seen) == 1 + len(verdict.rounds) > 1
    found = [round_.gates[0].found for round_ in verdict.rounds] + [verdict.gates[0].found]
    assert found == sorted(found, reverse=True)
    sizes = [round_.size_bytes for round_ in verdict.rounds] + [results.after.size_bytes]
    assert sizes == sorted(sizes)
    assert from_json(Results, to_json(results)) == results


def test_every_attempt_keeps_what_the_one_before_was_given_and_names_the_first_change():
    seen = []
    until(escalating(kl_mean_max=0.0), seen=seen)
    assert [attempt.number for attempt in seen] == list(range(len(seen)))
    for before, after in itertools.pairwise(seen):
        assert all(after.raised[name] >= bits for name, bits in before.raised.items())
        changed = {n for n, bits in after.raised.items() if before.raised.get(n) != bits}
        blocks = [LINEARS[name].block for name in changed if LINEARS[name].block is not None]
        assert after.first_block == min(blocks, default=BLOCKS)


def test_a_limit_that_no_width_meets_is_infeasible():
    for gates in (
        escalating(kl_mean_max=0.0),
        Gates(kl_mean_max=0.0, on_violation="escalate", rounds_max=64),
    ):
        verdict = until(gates).verdict
        assert verdict.outcome == "INFEASIBLE"
        assert verdict.reason
        assert len(verdict.rounds) <= gates.rounds_max


def test_a_student_that_is_too_large_already_is_infeasible_at_once():
    verdict = until(escalating(kl_mean_max=100.0, size_max="1 B")).verdict
    assert (verdict.outcome, verdict.rounds) == ("INFEASIBLE", ())


def test_only_the_head_changes_behind_the_last_block():
    raises, _ = raised(student({"lm_head": 4}), escalating(kl_mean_max=0))
    attempt = following(until_first(), raises, ANATOMY)
    assert (attempt.raised, attempt.first_block) == ({"lm_head": 8}, BLOCKS)


def until_first():
    seen = []
    until(None, seen=seen)
    return seen[0]


def test_a_walk_that_a_linear_ended_is_not_walked_again():
    seen = []

    def ended(attempt):
        seen.append(attempt)
        return replace(student(), after=None, divergence=None, samples=())

    gates = escalating(linear_error_max=1e-9, kl_mean_max=0.1)
    results = until_accepted(ended, gates, anatomy=ANATOMY, widths=PACKED)
    assert len(seen) == 1
    assert results.verdict.outcome == "INFEASIBLE"
    assert "widest grid" in results.verdict.reason

"""The limit on single linears acts before a block is committed, on whole fused groups."""

import pytest
import torch

from compress.errors import GateMissed
from compress.evaluate.escalate import Attempt, until_accepted
from compress.evaluate.text import Reading, divergence
from compress.recipe.gates import WIDTHS, Gates, LinearGate
from compress.recipe.schema import Quantize
from compress.results import Limits, Provenance, Results, Side, StageResult
from compress.stages import quantize
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.walk import hidden_states
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))
NOTHING_PASSES = 1e-12


class Kept(dict):
    """Finished units in memory."""

    def add(self, unit, record, files=()):
        self[unit] = record


def gate(error_max, on_violation, widths=WIDTHS["packed"]):
    return LinearGate(error_max, on_violation, widths)


def run(folder, scratch, gate=None, raised=None, **fields):
    scratch.mkdir(exist_ok=True)
    student = Student(open_folder(folder), scratch, Kept())
    context = Context(
        IDS, "cpu", torch.float32, scratch, limits=Limits(), gate=gate, raised=raised or {}
    )
    return student, quantize.run(student, Quantize(**{"group_size": 32, **fields}), context).linears


def by_name(records):
    return {record.name: record for record in records}


def errors(records):
    return {record.name: record.relative_error for record in records}


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_gate_that_all_pass_changes_nothing(tiny_llama, tmp_path, method):
    plain, without = run(tiny_llama, tmp_path / "plain", method=method)
    for policy in ("fail", "escalate", "keep_dense"):
        gated, found = run(tiny_llama, tmp_path / policy, gate(1.0, policy), method=method)
        assert found == without
        for linear in plain.anatomy.linears:
            assert torch.equal(plain.rounded(linear.name).codes, gated.rounded(linear.name).codes)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_fail_names_the_linear_what_was_found_and_the_limit_and_commits_nothing(
    tiny_llama, tmp_path, method
):
    limit = gate(NOTHING_PASSES, "fail")
    with pytest.raises(
        GateMissed, match=r"at 4 bits, and .*linear_error_max allows 1e-12"
    ) as found:
        run(tiny_llama, tmp_path, limit, method=method)
    assert str(found.value).startswith("model.layers.0.self_attn.")
    assert {record.role for record in found.value.linears} == {"q", "k", "v"}
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_what_misses_the_gate_gets_the_next_width_until_it_passes(tiny_llama, tmp_path, method):
    _, narrow = run(tiny_llama, tmp_path / "narrow", bits=2, method=method)
    limit = sorted(errors(narrow).values())[len(narrow) // 2] / 2
    student, found = run(
        tiny_llama, tmp_path / "wide", gate(limit, "escalate"), bits=2, method=method
    )
    assert all(record.outcome == "solved" for record in found)
    assert all(record.relative_error <= limit for record in found)
    widened = [record for record in found if record.escalated_from is not None]
    assert widened
    for record in widened:
        assert record.escalated_from == 2 < record.bits
        assert "at 2 bits, above linear_error_max" in record.note
        assert student.rounded(record.name).bits == record.bits
    assert all(record.bits == 2 for record in found if record.escalated_from is None)


def test_a_widened_linear_is_what_its_width_alone_would_have_given(tiny_llama, tmp_path):
    # The first group: what is in front of it does not depend on the gate.
    asked, _ = run(tiny_llama, tmp_path / "asked", bits=3)
    _, narrow = run(tiny_llama, tmp_path / "narrow", bits=2)
    first = [x for x in asked.anatomy.blocks[0].linears if x.shares == "attention_input"]
    found = errors(narrow)
    limit = max(found[x.name] for x in first) * 0.999
    wide, records = run(tiny_llama, tmp_path / "wide", gate(limit, "escalate"), bits=2)
    for linear in first:
        assert by_name(records)[linear.name].bits == 3
        for part in ("codes", "scale", "zero"):
            one, other = asked.rounded(linear.name), wide.rounded(linear.name)
            assert torch.equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("policy", ["escalate", "keep_dense"])
def test_fused_linears_share_one_fate(tiny_llama, tmp_path, policy, method):
    _, narrow = run(tiny_llama, tmp_path / "narrow", bits=3, method=method)
    limit = sorted(errors(narrow).values())[-3] * 0.999
    student, found = run(tiny_llama, tmp_path / "wide", gate(limit, policy), bits=3, method=method)
    records = by_name(found)
    for block in student.anatomy.blocks:
        for fused in ("qkv", "gate_up"):
            group = [records[x.name] for x in block.linears if x.fused == fused]
            assert len({(record.outcome, record.bits) for record in group}) == 1


def test_what_is_kept_dense_is_named_and_stays_the_teachers(tiny_llama, tmp_path):
    _, narrow = run(tiny_llama, tmp_path / "narrow", bits=2)
    limit = sorted(errors(narrow).values())[-2] * 0.999
    student, found = run(tiny_llama, tmp_path / "kept", gate(limit, "keep_dense"), bits=2)
    kept = [record for record in found if record.outcome == "kept_dense"]
    assert 0 < len(kept) < len(found)
    teacher = open_folder(tiny_llama)
    for record in kept:
        assert (record.bits, record.group_size, record.relative_error) == (None, None, 0.0)
        assert "above linear_error_max" in record.note
        assert student.rounded(record.name) is None
        name = record.name + ".weight"
        assert torch.equal(student.block(record.block)[name], teacher.block(record.block)[name])
    assert all(r.relative_error <= limit for r in found if r.outcome == "solved")


def test_only_widths_that_the_artifact_holds_are_tried(tiny_llama, tmp_path):
    _, narrow = run(tiny_llama, tmp_path / "narrow", bits=2)
    limit = max(errors(narrow).values()) * 0.999  # which 3 bits would keep
    only = gate(limit, "escalate", WIDTHS["compressed-tensors"])
    _, found = run(tiny_llama, tmp_path / "wide", only, bits=2)
    assert {record.bits for record in found} == {2, 4}


def test_what_misses_at_the_widest_grid_fails(tiny_llama, tmp_path):
    limit = gate(NOTHING_PASSES, "escalate")
    with pytest.raises(GateMissed, match=r"at 8 bits, .*There is no wider grid"):
        run(tiny_llama, tmp_path, limit, bits=2)


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_tied"])
def test_a_head_is_held_against_the_gate_too(request, tmp_path, fixture):
    folder = request.getfixturevalue(fixture)
    _, plain = run(folder, tmp_path / "plain", bits=8, head=4)
    assert plain[-1].name == "lm_head"
    limit = gate(plain[-1].relative_error * 0.999, "escalate")
    student, found = run(folder, tmp_path / "wide", limit, bits=8, head=4)
    assert (found[-1].bits, found[-1].escalated_from) == (8, 4)
    stored = student.anatomy.embedding if student.anatomy.tied else "lm_head"
    assert student.rounded(stored).bits == 8


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_walk_can_begin_with_more_bits_than_asked_for_and_says_so(tiny_llama, tmp_path, method):
    down = "model.layers.1.mlp.down_proj"
    asked = {"overrides": {"*.down_proj": {"group_size": 64}}, "method": method, "head": 4}
    student, found = run(tiny_llama, tmp_path, raised={down: 8, "lm_head": 8}, **asked)
    records = by_name(found)
    assert (records[down].bits, records[down].group_size) == (8, 64)
    assert (records[down].escalated_from, records["lm_head"].escalated_from) == (4, 4)
    assert "more bits" in records[down].note
    assert student.rounded(down).bits == 8
    others = records.keys() - {down, "lm_head"}
    assert all(records[name].escalated_from is None for name in others)


def reading(weights):
    hidden = hidden_states(weights, IDS, device="cpu", dtype=torch.float32)
    return Reading(weights, hidden, IDS, "random")


def test_more_bits_for_the_worst_linears_bring_a_student_within_its_limit(tiny_llama, tmp_path):
    teacher = open_folder(tiny_llama)
    before = reading(teacher)

    def make(attempt):
        student, linears = run(
            tiny_llama, tmp_path / str(attempt.number), raised=attempt.raised, bits=2
        )
        return Results(
            Provenance("mine", "", "teacher", "", "self", "", 0, 0, 1, "cpu"),
            Side(1, 16.0, None), Side(1, 2.0, None),
            divergence(before, reading(student)),
            (StageResult("quantize", "gptq", tuple(linears)),), (),
        )  # fmt: skip

    first = make(Attempt()).divergence.kl_mean
    gates = Gates(kl_mean_max=first * 0.6, on_violation="escalate", rounds_max=16)
    results = until_accepted(make, gates, anatomy=teacher.anatomy, widths=WIDTHS["packed"])
    assert results.verdict.outcome == "ACCEPT"
    assert results.verdict.rounds
    assert results.divergence.kl_mean <= first * 0.6
    given = {raised.name for round_ in results.verdict.rounds for raised in round_.raised}
    assert {r.name for r in results.linears if r.escalated_from == 2} == given
    assert set(results.fallbacks) == {r for r in results.linears if r.name in given}

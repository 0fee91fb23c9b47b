from unittest.mock import Mock

import pytest
import torch
from conftest import CONFIGS
from students import IDS, damage, run, states

from compress.errors import SolveError
from compress.journal import Journal
from compress.kernels.grid import Rounded, fit
from compress.recipe.schema import Quantize
from compress.stages import quantize, rounding
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.load import materialize
from compress.surgery.walk import logits
from compress.teacher.folder import open_folder


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_family_is_quantized_and_reads_back_as_its_codes_say(tiny_model, tmp_path, family):
    folder = tiny_model(family)
    student, result = run(folder, tmp_path)
    assert {r.name for r in result.linears} == {x.name for x in student.anatomy.linears}
    assert all(r.outcome == "solved" and 0 < r.relative_error < 0.1 for r in result.linears)
    with torch.no_grad():
        whole = materialize(student, torch.float32)(IDS).logits.flatten(0, 1)
    assert torch.allclose(logits(student, states(student).flatten(0, 1)), whole, atol=1e-4)


def test_gptq_does_less_damage_than_rounding_to_nearest(tiny_llama, tmp_path):
    for bits in (2, 3, 4):
        nearest, _ = run(tiny_llama, tmp_path / f"rtn{bits}", method="rtn", bits=bits)
        solved, _ = run(tiny_llama, tmp_path / f"gptq{bits}", bits=bits, sink_weight=0.0)
        assert damage(solved, tiny_llama) < damage(nearest, tiny_llama)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_both_orders_solve_every_linear_and_agree_where_nothing_is_in_front(
    tiny_model, tmp_path, family
):
    folder = tiny_model(family)
    (first, ordered), (second, at_once) = (
        run(folder, tmp_path / str(order), true_sequential=order) for order in (True, False)
    )
    assert all(r.outcome == "solved" for r in (*ordered.linears, *at_once.linears))
    front = first.anatomy.blocks[0].linears[0].name
    assert torch.equal(first.rounded(front).codes, second.rounded(front).codes)
    assert damage(first, folder) == pytest.approx(damage(second, folder), rel=0.5)


def test_sinks_that_count_for_more_are_reproduced_better(tiny_llama, tmp_path):
    plain, _ = run(tiny_llama, tmp_path / "plain", sink_weight=0.0, bits=3)
    heavy, _ = run(tiny_llama, tmp_path / "heavy", sink_weight=256.0, bits=3)
    errors = [
        float((states(student) - states(open_folder(tiny_llama)))[:, :2].square().mean())
        for student in (plain, heavy)
    ]
    assert errors[1] < errors[0]


def test_batching_and_spilling_to_disk_change_nothing(tiny_llama, tmp_path, monkeypatch):
    plain, _ = run(tiny_llama, tmp_path / "plain")
    mapped = Mock(side_effect=torch.from_file)
    monkeypatch.setattr(torch, "from_file", mapped)
    spilled, _ = run(tiny_llama, tmp_path / "spilled", resident_bytes=0)
    assert mapped.called
    assert not (tmp_path / "spilled" / "activations.bin").exists()  # held by its map alone
    for linear in plain.anatomy.linears:
        first, second = plain.rounded(linear.name), spilled.rounded(linear.name)
        assert torch.equal(first.codes, second.codes)


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_tied"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_quantized_head_is_the_embedding_too_where_they_are_tied(
    request, tmp_path, fixture, method
):
    folder = request.getfixturevalue(fixture)
    student, result = run(folder, tmp_path, method=method, head=8)
    anatomy = student.anatomy
    assert result.linears[-1].name == "lm_head"
    assert result.linears[-1].bits == 8
    stored = anatomy.embedding if anatomy.tied else "lm_head"
    assert student.rounded(stored) is not None
    assert dict(student.parts()).keys() >= {stored}


def test_overrides_ignores_and_targets_decide_linear_by_linear(tiny_llama, tmp_path):
    student, _ = run(
        tiny_llama,
        tmp_path,
        ignore=["*.k_proj"],
        overrides={"*.down_proj": {"bits": 8, "group_size": -1}},
    )
    assert student.rounded("model.layers.0.self_attn.k_proj") is None
    down = student.rounded("model.layers.1.mlp.down_proj")
    assert (down.bits, down.group_size) == (8, 128)
    assert student.rounded("model.layers.1.mlp.up_proj").bits == 4


def test_parts_are_every_tensor_of_the_teacher_once(tiny_tied, tmp_path):
    student, _ = run(tiny_tied, tmp_path)
    names = [name for name, _ in student.parts()]
    modules = {linear.name for linear in student.anatomy.linears}
    assert len(names) == len(set(names))
    assert {n + ".weight" if n in modules else n for n in names} == set(student.anatomy.tensors)


def test_a_second_stage_keeps_what_the_first_made(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, targets=["*self_attn*"])
    query = student.rounded("model.layers.0.self_attn.q_proj")
    context = Context(IDS, "cpu", torch.float32, tmp_path)
    student.enter(1)
    quantize.run(student, Quantize(group_size=32, bits=8, targets=["*mlp*"]), context)
    assert torch.equal(student.rounded("model.layers.0.self_attn.q_proj").codes, query.codes)
    assert student.rounded("model.layers.0.mlp.up_proj").bits == 8


def test_a_plain_tensor_that_was_changed_stays_so_and_survives_a_restart(tiny_llama, tmp_path):
    name = "model.layers.1.input_layernorm.weight"
    student, _ = run(tiny_llama, tmp_path, method="rtn")
    scaled = student.block(1)[name] * 2
    student.enter(1)
    student.commit(1, {}, [], {name: scaled})
    again = Student(open_folder(tiny_llama), tmp_path, Journal(tmp_path / "journal.jsonl", {}))
    again.enter(1)
    assert again.finished(1) == []
    for one in (student, again):
        assert torch.equal(one.block(1)[name], scaled)
        assert torch.equal(dict(one.parts())[name], scaled)
        assert isinstance(one.rounded("model.layers.1.mlp.up_proj"), Rounded)


class _Broken:
    """A teacher one of whose weights is not a number."""

    def __init__(self, teacher):
        self._teacher, self.config, self.anatomy = teacher, teacher.config, teacher.anatomy
        self.outside = teacher.outside

    def block(self, index):
        tensors = {name: tensor.clone() for name, tensor in self._teacher.block(index).items()}
        if index == 1:
            tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] = float("nan")
        return tensors


def test_a_linear_that_cannot_be_solved_fails_the_run_by_name(tiny_llama, tmp_path):
    student = Student(
        _Broken(open_folder(tiny_llama)), tmp_path, Journal(tmp_path / "journal.jsonl", {})
    )
    context = Context(IDS, "cpu", torch.float32, tmp_path)
    with pytest.raises(SolveError, match=r"layers\.1\.\S+v_proj.*weights hold NaN.*keep_dense"):
        quantize.run(student, Quantize(group_size=32), context)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_what_cannot_be_solved_is_kept_dense_with_all_that_is_fused_with_it(
    tiny_llama, tmp_path, monkeypatch, method
):
    def fit_fails_at_8_bits(weight, *, bits, **fields):
        if bits == 8:
            raise SolveError("no scale fits")
        return fit(weight, bits=bits, **fields)

    monkeypatch.setattr(rounding, "fit", fit_fails_at_8_bits)
    attention = "model.layers.1.self_attn."
    spec = Quantize(
        method=method,
        group_size=32,
        overrides={attention + "v_proj": {"bits": 8}},
        on_unsolvable="keep_dense",
    )
    student = Student(open_folder(tiny_llama), tmp_path, Journal(tmp_path / "journal.jsonl", {}))
    context = Context(IDS, "cpu", torch.float32, tmp_path)
    found = {r.name: r for r in quantize.run(student, spec, context).linears}
    kept = {name for name, record in found.items() if record.outcome == "kept_dense"}
    assert kept == {attention + name for name in ("q_proj", "k_proj", "v_proj")}
    assert found[attention + "v_proj"].note == "no scale fits"
    for name in ("q_proj", "k_proj"):
        told = f"fused with {attention}v_proj, which is kept dense: no scale fits"
        assert (found[attention + name].bits, found[attention + name].note) == (None, told)
    assert {name for name in found if student.rounded(name) is None} == kept


def test_walking_up_to_the_first_block_to_be_solved_tells_when_it_is_there(tiny_llama, tmp_path):
    seen = []
    student = Student(open_folder(tiny_llama), tmp_path, Journal(tmp_path / "journal.jsonl", {}))
    context = Context(IDS, "cpu", torch.float32, tmp_path, seen.append)
    quantize.run(student, Quantize(group_size=32, targets=["model.layers.1.*"]), context)
    assert [(r.done, r.total) for r in seen if r.step == "catch up"] == [(0, 1), (1, 1)]

"""A student whose hidden states are held against its teacher's as it learns."""

import pytest
import torch
from learners import (
    FIELDS,
    TEXT,
    context_of,
    cut_ends_in_the_same_bits,
    kl,
    narrow_student,
    pruned_student,
    teach,
)
from students import IDS, cut

from compress.kernels.states import apart
from compress.recipe.distill import Distill
from compress.recipe.loss import Hidden
from compress.results import Limits
from compress.stages import distill
from compress.surgery.beside import Beside
from compress.surgery.walk import hidden_states
from compress.teacher.folder import open_folder

HIDDEN = {"hidden": {"weight": 0.5}}


def test_every_block_stands_for_the_one_that_ends_at_its_share_of_the_depth():
    assert Hidden().pairs(3, 6) == ((0, 1), (1, 3), (2, 5))
    assert Hidden().pairs(4, 4) == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert Hidden().pairs(2, 5) == ((0, 2), (1, 4))
    assert Hidden().pairs(6, 3)[0] == (0, 0)
    assert Hidden(blocks=[[1, 4]]).pairs(3, 6) == ((1, 4),)


def test_a_teacher_beside_says_what_it_says_when_walked(tiny_llama):
    teacher = open_folder(tiny_llama)
    beside = Beside(teacher, 2, device="cpu", dtype=torch.float32)
    inside, last = beside.read(IDS, {0, 1})
    assert torch.equal(inside[1], last)
    expected = hidden_states(teacher, IDS, device="cpu", dtype=torch.float32)
    torch.testing.assert_close(beside.finish(last), expected)
    assert not inside[0].is_inference()


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_the_loss_is_the_divergence_and_so_many_times_the_mean_over_pairs(
    tiny_model, tmp_path, measure
):
    student = narrow_student(tiny_model, tmp_path)
    student.enter(1)
    context = context_of(student.teacher, tmp_path, None)
    hidden = {"measure": measure, "weight": 0.7, "blocks": [[0, 1]]}
    spec = Distill(**FIELDS, loss={"hidden": hidden})
    learner = distill._learner(student, spec, context)
    lessons = distill._lessons(learner, student, spec, context)
    lesson = lessons.of([0, 1], 0, torch.device("cpu"))
    with learner.made():
        found = learner(lesson)
        plain = learner._held(lesson, learner.objective, learner.dtype)
        own = hidden_states_behind(student, lesson.ids, 0) @ learner.projections()[0].T
    _, theirs = Beside(student.teacher, 2, device="cpu", dtype=torch.float32).read(lesson.ids)
    shares = torch.full((own.flatten(0, 1).shape[0],), 1 / lesson.ids.numel())
    added = apart(own.flatten(0, 1), theirs.flatten(0, 1), measure, shares)
    torch.testing.assert_close(found, plain + 0.7 * added)
    found.backward()
    assert all(p.grad is not None for p in learner.learning().values())
    assert not [name for name, _ in learner.learned() if "matching" in name]


def hidden_states_behind(weights, ids, block):
    return Beside(weights, block + 1, device="cpu", dtype=torch.float32).read(ids)[1]


def test_hidden_states_come_nearer_than_without_being_asked_for(tiny_model, tmp_path):
    found = []
    for name, loss in (("plain", {}), ("matched", {"hidden": {"weight": 5.0}})):
        teacher = open_folder(tiny_model("llama", tied=True))
        student, _ = cut(teacher, tmp_path / name, ffn=0.5, repair=False)
        told = teach(student, tmp_path / name, learning_rate=3e-3, loss=loss).distilled
        assert told.kl_after < told.kl_before
        assert told.kl_after == pytest.approx(kl(student), rel=1e-4)
        own, theirs = (hidden_states_behind(x, TEXT.ids, 1) for x in (student, teacher))
        each = torch.full((TEXT.ids.numel(),), 1 / TEXT.ids.numel())
        found.append(float(apart(own.flatten(0, 1), theirs.flatten(0, 1), "mse", each)))
    assert found[1] < found[0]
    assert "5 times the mse of hidden states" in told.asked


def test_a_narrow_student_is_carried_over_and_keeps_its_own_width(tiny_model, tmp_path):
    student = narrow_student(tiny_model, tmp_path)
    shapes = dict(student.anatomy.tensors)
    found = teach(student, tmp_path, learning_rate=3e-3, loss=HIDDEN).distilled
    assert found.kl_after < found.kl_before
    assert student.anatomy.tensors == shapes
    own = sum(tensor.numel() for tensor in (student.outside() | student.block(0)).values())
    assert found.learned_weights == own + 64 * 32


def test_a_run_that_is_cut_ends_in_the_same_bits_projections_included(
    tiny_model, tmp_path, monkeypatch
):
    cut_ends_in_the_same_bits(tiny_model, tmp_path, monkeypatch, loss=HIDDEN, learning_rate=1e-3)


def test_blocks_computed_again_are_matched_all_the_same(tiny_llama, tmp_path):
    found = []
    for room in (1 << 30, 1):
        student = pruned_student(tiny_llama, tmp_path / str(room))
        context = {"limits": Limits(64, room)}
        teach(student, tmp_path / str(room), context=context, steps=2, loss=HIDDEN)
        found.append(torch.cat([t.flatten() for t in student.block(0).values()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)

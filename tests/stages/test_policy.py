"""A student that writes some of what it learns from, and hears what its teacher had said."""

import dataclasses

import pytest
import torch
from learners import (
    FIELDS,
    TEXT,
    context_of,
    cut_ends_in_the_same_bits,
    narrow_student,
    pruned_student,
    teach,
)
from students import run

from compress.kernels.distillation import Head, States, distillation
from compress.recipe.distill import Distill
from compress.recipe.text import OnPolicy
from compress.stages import distill
from compress.stages.policy import Writer
from compress.surgery import attention
from compress.surgery.decode import deciding
from compress.surgery.walk import head_of, hidden_states

OWN = {"on_policy": {"share": 0.5, "prompt_tokens": 6}}
CPU = torch.device("cpu")


def lessons_of(student, scratch, **fields):
    student.enter(1)
    context = context_of(student.teacher, scratch, None)
    spec = Distill(**{**FIELDS, **OWN, **fields})
    learner = distill._learner(student, spec, context)
    return learner, distill._lessons(learner, student, spec, context)


def test_beginnings_stay_and_what_is_drawn_counts_up_to_its_end(tiny_llama, tmp_path):
    student = pruned_student(tiny_llama, tmp_path)
    learner, lessons = lessons_of(student, tmp_path)
    ids = TEXT.ids[[0, 1, 2]]
    with learner.made():
        found, counts = lessons.writer.write(ids, [0, 1, 2], 3)
    assert torch.equal(found[:, :6], ids[:, :6])
    assert not torch.equal(found[:, 6:], ids[:, 6:])
    assert (counts[:, :6] == 0).all()
    torch.testing.assert_close(counts.sum(1), torch.ones(3))
    enders = dataclasses.replace(lessons.writer, end=frozenset(found[:, 8].tolist()))
    with learner.made():
        again, counts = enders.write(ids, [0, 1, 2], 3)
    assert torch.equal(again, found)
    assert (counts[:, 9:] == 0).all()
    assert learner.model.config._attn_implementation == attention.NAME


def test_what_is_drawn_is_told_by_seed_step_and_window_alone(tiny_llama, tmp_path):
    learner, lessons = lessons_of(pruned_student(tiny_llama, tmp_path), tmp_path)
    ids = TEXT.ids[[0, 1, 2]]
    with learner.made():
        together, _ = lessons.writer.write(ids, [0, 1, 2], 3)
        alone, _ = lessons.writer.write(ids[1:2], [1], 3)
        later, _ = lessons.writer.write(ids, [0, 1, 2], 4)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together, later)


def test_a_share_of_the_steps_is_written():
    def steps(share, seed=0):
        writer = Writer(None, OnPolicy(share=share), seed, frozenset())
        return [writer.takes(step) for step in range(1000)]

    assert all(steps(1.0))
    assert sum(steps(0.3)) == pytest.approx(300, abs=60)
    assert steps(0.3) == steps(0.3) != steps(0.3, seed=1)


@pytest.mark.parametrize("cross_entropy", [0.0, 0.5])
def test_the_teacher_alone_scores_what_the_student_has_written(tiny_llama, tmp_path, cross_entropy):
    student = pruned_student(tiny_llama, tmp_path)
    on_policy = {"share": 1.0, "prompt_tokens": 6}
    loss = {"cross_entropy": cross_entropy}  # with no text: its own draws are none
    learner, lessons = lessons_of(student, tmp_path, on_policy=on_policy, loss=loss)
    with learner.made():
        lesson = lessons.of([0, 1], 0, CPU)
        found = learner(lesson)
    said, own = (
        hidden_states(one, lesson.ids, device="cpu", dtype=torch.float32)
        for one in (student.teacher, student)
    )
    torch.testing.assert_close(lesson.said, said)
    pair = [
        States(hidden.flatten(0, 1), Head(*head_of(one)))
        for hidden, one in ((own, student), (said, student.teacher))
    ]
    asked = dataclasses.replace(learner.objective, cross_entropy=0.0)
    expected = distillation(*pair, asked, weights=lesson.asked)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert lessons.count([0, 1], 0) == 2.0


@pytest.mark.parametrize("train", ["all", "hidden states too"])
def test_a_run_that_is_cut_ends_in_the_same_bits(tiny_model, tmp_path, monkeypatch, train):
    loss = {} if train == "all" else {"loss": {"hidden": {"weight": 0.1}}}
    fields = {**OWN, **loss, "learning_rate": 1e-3}
    found = cut_ends_in_the_same_bits(tiny_model, tmp_path, monkeypatch, **fields).distilled
    assert found.kl_after < found.kl_before
    assert "50 % of steps on its own text" in found.asked


def test_tokens_that_weigh_nothing_teach_nothing(tiny_llama, tmp_path):
    student = pruned_student(tiny_llama, tmp_path / "a")
    weights = torch.zeros(TEXT.ids.shape)
    weights[:, 4:9] = 1.0
    text = dataclasses.replace(TEXT, weights=weights)
    other = TEXT.ids.clone()
    other[:, 9:] = 7  # behind all that counts
    later = dataclasses.replace(TEXT, ids=other, weights=weights)
    found = []
    for name, read in (("a", text), ("b", later)):
        student = pruned_student(tiny_llama, tmp_path / name)
        told = teach(student, tmp_path / name, context={"text": read}, learning_rate=1e-3)
        found.append((told.distilled.kl_after, student.block(0)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_writes_with_the_logits_that_it_trains_on(tiny_model, tmp_path, family, dtype):
    student = pruned_student(tiny_model(family, tied=True), tmp_path)
    student.enter(1)
    context = dataclasses.replace(context_of(student.teacher, tmp_path, None), dtype=dtype)
    learner, ids = distill._learner(student, Distill(**FIELDS), context), TEXT.ids[:4]
    with learner.made(), torch.no_grad():
        whole = learner.model(ids).logits
        with deciding(learner.model, ids.shape[1], dtype) as decoder:
            found = torch.stack([decoder.step(one) for one in ids.T], 1)
    assert found.dtype == torch.float32
    near = torch.cosine_similarity(found, whole, dim=-1)
    assert near.min() > (0.9999 if dtype == torch.float32 else 0.99)


def test_a_tied_head_that_has_a_grid_writes_with_what_it_has_learned(tiny_model, tmp_path):
    student, _ = run(tiny_model("llama", tied=True), tmp_path, method="rtn", bits=4, head=8)
    student.enter(1)
    context, ids = context_of(student.teacher, tmp_path, None), TEXT.ids[:2]
    learner = distill._learner(student, Distill(**FIELDS, train="codes"), context)
    table = learner.model.get_input_embeddings()
    with torch.no_grad():
        table.grid.factor.mul_(torch.linspace(0.5, 1.5, len(table.grid.factor))[:, None])
    with learner.made(), torch.no_grad():
        hidden = learner.model.base_model(ids).last_hidden_state
        assert torch.equal(learner.model(ids).logits, hidden @ learner._head()[0].T)
    assert "lm_head.weight" not in dict(learner.model.named_parameters())


def test_a_step_on_its_own_text_learns_in_bfloat16(tiny_model, tmp_path):
    student = narrow_student(tiny_model, tmp_path)
    student.enter(1)
    narrow = torch.bfloat16

    def said(ids):
        return hidden_states(student.teacher, ids, device="cpu", dtype=narrow)

    context = context_of(student.teacher, tmp_path, student._ledger)
    context = dataclasses.replace(context, dtype=narrow, said=said)
    hidden = {"loss": {"hidden": {"weight": 0.1}}, "learning_rate": 3e-3}
    told = distill.run(student, Distill(**{**FIELDS, **OWN, **hidden}), context).distilled
    assert told.kl_after < told.kl_before

from pathlib import Path

import pytest
import torch
from students import IDS, run, states

from compress.kernels.divergence import kl
from compress.kernels.grid import Rounded
from compress.recipe.distill import Distill
from compress.stages import distill
from compress.stages.context import Context
from compress.surgery.learning import Lesson
from compress.surgery.load import materialize
from compress.surgery.walk import logits

FAMILIES = ["llama", "gemma2", "gpt2", "opt", "gpt_neox", "qwen3"]


TRAIN = ("all", "scales_and_norms", "codes")


def learner(student, train, dtype=torch.float32, *, smoothed=False):
    spec = Distill(train=train, text={"set": "smoke"})
    return distill._learner(student, spec, Context(IDS, "cpu", dtype, Path(), smoothed=smoothed))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_the_walked_student_says_and_all_that_learns_has_a_gradient(
    tiny_model, tmp_path, family, tied
):
    student, _ = run(tiny_model(family, tied=tied), tmp_path, method="rtn", head=8)
    said, own = states(student.teacher), states(student)
    expected = float(
        kl(logits(student.teacher, said.flatten(0, 1)), logits(student, own.flatten(0, 1))).mean()
    )
    for train in TRAIN:
        found = learner(student, train)
        with found.made():
            assert float(found.divergence(Lesson(IDS, said))) == pytest.approx(
                expected, rel=1e-3, abs=1e-6
            )
            found(Lesson(IDS, said)).backward()
        grads = {name: parameter.grad for name, parameter in found.learning().items()}
        assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
        assert all(not p.grad for p in found.parameters() if not p.requires_grad)


def test_what_was_not_moved_is_given_back_as_it_was(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, method="rtn")
    for train in TRAIN:
        stored = student.outside() | student.block(0) | student.block(1)
        for name, found in learner(student, train).learned():
            if isinstance(found, Rounded):
                assert torch.equal(found.dequantize(), stored[f"{name}.weight"])
                assert torch.equal(found.codes, student.rounded(name).codes)
            else:
                assert torch.equal(found, stored[name])


def test_mapped_weights_are_not_written_through(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, method="rtn", targets=["*.q_proj"])
    before = {name: tensor.clone() for name, tensor in student.teacher.outside().items()}
    found = learner(student, "all")
    with torch.no_grad():
        for parameter in found.learning().values():
            parameter.add_(1.0)
    for name, tensor in student.teacher.outside().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("train", TRAIN[1:])
def test_before_the_first_step_its_logits_are_those_of_what_is_stored(
    tiny_model, tmp_path, family, train
):
    student, _ = run(tiny_model(family, tied=True), tmp_path, method="gptq", bits=3)
    stored = materialize(student, torch.float32)
    stored.set_attn_implementation("sdpa")
    found = learner(student, train)
    with torch.no_grad(), found.made():
        assert torch.equal(found.model(IDS).logits, stored(IDS).logits)


@pytest.mark.parametrize(("smooth", "known"), [(None, True), ("awq", False)])
def test_latent_codes_begin_at_the_weight_that_was_rounded_where_that_is_known(
    tiny_llama, tmp_path, smooth, known
):
    student, _ = run(tiny_llama, tmp_path, method="rtn", bits=3, smooth=smooth)
    found = learner(student, "codes", smoothed=smooth is not None).learning()
    latent = found["model.layers.0.mlp.up_proj.grid.latent"]
    matrix = student.rounded("model.layers.0.mlp.up_proj")
    weight = student.teacher.block(0)["model.layers.0.mlp.up_proj.weight"]
    exact = weight / matrix.scale.repeat_interleave(32, 1) + 4
    assert torch.equal(latent, matrix.codes.float()) != known
    if known:
        torch.testing.assert_close(latent, exact.clamp(-0.484375, 7.484375), atol=0.02, rtol=0)


def test_gradients_of_a_step_gather_before_they_reach_codes_and_scales(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, method="gptq", bits=3)
    said, found = states(student.teacher), []
    for pieces in (1, 4):
        one = learner(student, "codes")
        with one.made():
            for ids, theirs in zip(IDS.chunk(pieces), said.chunk(pieces), strict=True):
                (one(Lesson(ids, theirs)) / pieces).backward()
        found.append({name: parameter.grad for name, parameter in one.learning().items()})
    assert len(one.latent()) == 14
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6)


def test_narrow_products_come_near_to_wide_ones(tiny_tied, tmp_path):
    student, _ = run(tiny_tied, tmp_path, method="gptq", bits=3, head=8)
    said, found = states(student.teacher), []
    for dtype in (torch.float32, torch.bfloat16):
        one = learner(student, "codes", dtype)
        with one.made():
            one(Lesson(IDS, said)).backward()
        found.append(torch.cat([p.grad.flatten() for p in one.latent()]))
    assert found[1].dtype == torch.float32
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.99

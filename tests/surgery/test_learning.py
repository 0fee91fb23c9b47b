import pytest
import torch
from students import IDS, run, states

from compress.kernels.distillation import Objective
from compress.kernels.divergence import kl
from compress.student import HEAD
from compress.surgery.learning import Learner
from compress.surgery.walk import logits

FAMILIES = ["llama", "gemma2", "gpt2", "opt", "gpt_neox", "qwen3"]


def learner(student, learns, **fields):
    names = [name for unit in (HEAD, 0, 1) for name in student.coded(unit)]
    rounded = {name: student.rounded(name) for name in names}
    return Learner(
        student, rounded, student.teacher, learns=learns, dtype=torch.float32,
        objective=Objective(**fields),
    )  # fmt: skip


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
    for learns in ("all", "scales_and_norms"):
        found = learner(student, learns)
        assert float(found.divergence(IDS, said)) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        found(IDS, said).backward()
        grads = {name: parameter.grad for name, parameter in found.learning().items()}
        assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
        assert all(not p.grad for p in found.parameters() if not p.requires_grad)


def test_what_was_not_moved_is_given_back_as_it_was(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, method="rtn")
    for learns in ("all", "scales_and_norms"):
        stored = student.outside() | student.block(0) | student.block(1)
        for name, tensor in learner(student, learns).learned():
            codes = student.rounded(name)
            assert torch.equal(tensor, codes.scale if codes else stored[name])


def test_mapped_weights_are_not_written_through(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, method="rtn", targets=["*.q_proj"])
    before = {name: tensor.clone() for name, tensor in student.teacher.outside().items()}
    found = learner(student, "all")
    with torch.no_grad():
        for parameter in found.learning().values():
            parameter.add_(1.0)
    for name, tensor in student.teacher.outside().items():
        assert torch.equal(tensor, before[name])

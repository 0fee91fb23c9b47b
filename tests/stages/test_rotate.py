"""The stage `rotate`: the same function, other weights, and what later stages make of them."""

import pytest
import torch
from students import IDS, states

from compress.journal import Journal
from compress.kernels.grid import Rounded
from compress.recipe.rotate import Rotate
from compress.recipe.schema import Quantize
from compress.results import Limits
from compress.stages import quantize, rotate
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.load import materialize
from compress.surgery.walk import logits
from compress.teacher.folder import open_folder

TURNING = ["llama", "mistral", "qwen2", "qwen3"]


def turned(teacher, scratch, spec=None, **fields):
    """A student that is turned and, given fields, rounded."""
    scratch.mkdir(exist_ok=True)
    student = Student(teacher, scratch, Journal(scratch / "journal.jsonl", {}))
    context = Context(IDS, "cpu", torch.float32, scratch, limits=Limits(64, 1 << 30))
    results = [rotate.run(student, Rotate(**(spec or {})), context)]
    if fields:
        student.enter(1)
        results.append(quantize.run(student, Quantize(**{"group_size": 32, **fields}), context))
    return student, results


def says(weights):
    with torch.inference_mode():
        return materialize(weights, torch.float32)(IDS).logits


def logit_error(student, teacher):
    """Final states are turned with the stream: logits are what both have."""
    return float((says(student) - says(teacher)).square().mean())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", TURNING)
def test_a_student_that_is_only_turned_says_what_its_teacher_says(
    tiny_model, tmp_path, family, tied
):
    teacher = open_folder(tiny_model(family, tied=tied))
    student, (result,) = turned(teacher, tmp_path)
    student.settle()
    assert torch.allclose(says(student), says(teacher), atol=1e-4)
    assert student.teacher is teacher
    assert (result.stage, result.method) == ("rotate", "residual hadamard, values hadamard")
    assert not student.anatomy.tied


def test_what_stays_dense_is_stored_in_the_dtype_of_the_teacher(tiny_tied, tmp_path):
    teacher = open_folder(tiny_tied).cast("bfloat16")
    student, _ = turned(teacher, tmp_path, targets=["*.down_proj"])
    up, down = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj"
    assert student.block(0)[up].dtype == student.outside()["lm_head.weight"].dtype == torch.float32
    student.settle()
    parts = dict(student.parts())
    assert set(parts) == {
        name.removesuffix(".weight") if "down_proj" in name else name
        for name in student.anatomy.tensors
    }
    assert isinstance(parts[down], Rounded)
    for name, part in parts.items():
        assert isinstance(part, Rounded) or part.dtype == torch.bfloat16, name
    for name, tensor in (student.block(0) | student.outside()).items():
        assert torch.equal(tensor, dense(parts, name))


def dense(parts, name):
    return parts[name] if name in parts else parts[name.removesuffix(".weight")].dequantize()


@pytest.mark.parametrize("fields", [{}, {"error_correction": 0.5}, {"head": 8}])
def test_a_turned_student_is_solved_and_reads_back_as_its_codes_say(tiny_tied, tmp_path, fields):
    student, (_, result) = turned(open_folder(tiny_tied), tmp_path, bits=4, **fields)
    assert {r.outcome for r in result.linears} == {"solved"}
    assert max(r.relative_error for r in result.linears) < 0.1
    found = logits(student, states(student).flatten(0, 1))
    assert torch.allclose(found, says(student).flatten(0, 1), atol=1e-4)
    if "head" in fields:
        assert student.rounded("lm_head").bits == 8
        assert student.rounded("model.embed_tokens") is None


def test_nothing_is_lacking_of_the_turned_teacher_beside_it(tiny_llama, tmp_path):
    """A teacher walked in another basis would find all of the stream lacking."""
    corrected, _ = turned(open_folder(tiny_llama), tmp_path / "a", bits=8, error_correction=1.0)
    plain, _ = turned(open_folder(tiny_llama), tmp_path / "b", bits=8)
    teacher = open_folder(tiny_llama)
    assert logit_error(corrected, teacher) < 2 * logit_error(plain, teacher) < 0.1


def test_a_turned_run_that_was_cut_short_goes_on_to_the_same_student(tiny_tied, tmp_path):
    fields = {"bits": 3, "error_correction": 0.5}
    whole, (_, expected) = turned(open_folder(tiny_tied), tmp_path / "whole", **fields)
    turned(open_folder(tiny_tied), tmp_path / "cut", **fields)
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_text("\n".join(journal.read_text().splitlines()[:-1]) + "\n")
    again, (_, result) = turned(open_folder(tiny_tied), tmp_path / "cut", **fields)
    assert result == expected
    for name in again.anatomy.inside(1):
        assert torch.equal(again.block(1)[name], whole.block(1)[name])


class Loud:
    """A teacher in which one channel of the stream weighs thirty times as much in every MLP."""

    def __init__(self, teacher):
        self._teacher = teacher

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def block(self, index):
        found = {name: tensor.clone() for name, tensor in self._teacher.block(index).items()}
        for linear in self._teacher.anatomy.blocks[index].linears:
            if linear.shares == "mlp_input":
                found[linear.name + ".weight"][:, 3] *= 30
        return found


def test_turning_spreads_what_rounding_to_nearest_would_lose(tiny_llama, tmp_path):
    teacher, fields = Loud(open_folder(tiny_llama)), {"method": "rtn", "bits": 4, "group_size": 64}
    plain = Student(teacher, tmp_path, Journal(tmp_path / "journal.jsonl", {}))
    quantize.run(plain, Quantize(**fields), Context(IDS, "cpu", torch.float32, tmp_path))
    spread, _ = turned(teacher, tmp_path / "turned", **fields)
    assert logit_error(spread, teacher) < 0.7 * logit_error(plain, teacher)

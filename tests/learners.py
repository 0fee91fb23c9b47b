"""Students that learn from tiny teachers, and what they learn from."""

import contextlib

import pytest
import torch
from students import IDS

from compress.calibrate import tokens
from compress.journal import Journal
from compress.kernels.distillation import Head, Objective, States, distillation
from compress.recipe.distill import Distill
from compress.recipe.prune import Prune
from compress.results import Limits
from compress.stages import distill, prune, training
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.walk import head_of, hidden_states
from compress.teacher.folder import open_folder

GENERATOR = torch.Generator().manual_seed(1)
ROWS = torch.randint(0, 256, (16, 16), generator=GENERATOR)  # no teacher of these is a rule
TEXT = tokens.whole(torch.cat([ROWS, ROWS[:8]]), source="dice")  # so what is held out was read
FIELDS = {"held_out": 8, "batch_tokens": 64, "check_every": 4, "steps": 12, "patience": None}


class Crash(BaseException):
    """The machine went away: nothing that follows is executed."""


def context_of(teacher, scratch, ledger, **fields):
    def said(ids):
        return hidden_states(teacher, ids, device="cpu", dtype=torch.float32)

    limits = fields.pop("limits", Limits(64, 1 << 30))
    return Context(
        IDS, "cpu", torch.float32, scratch, limits=limits, ledger=ledger, said=said,
        **{"text": TEXT, **fields},
    )  # fmt: skip


def teach(student, scratch, **fields):
    """Enter the next stage and run it; the journal is that of the student."""
    student.enter(1)
    context = context_of(student.teacher, scratch, student._ledger, **fields.pop("context", {}))
    return distill.run(student, Distill(**{**FIELDS, **fields}), context)


def kl(student):
    """Of the held-out windows, from the student as it is stored."""
    ids = TEXT.ids[-FIELDS["held_out"] :]
    found = []
    for weights in (student, student.teacher):
        hidden = hidden_states(weights, ids, device="cpu", dtype=torch.float32)
        found.append(States(hidden.flatten(0, 1), Head(*head_of(weights))))
    return float(distillation(*found, Objective()))


def narrow_student(tiny_model, scratch):
    """Another model than its teacher, half as wide, with one block."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    scratch.mkdir(exist_ok=True)
    return Student(
        open_folder(tiny_model("llama", tied=True)), scratch,
        Journal(scratch / "journal.jsonl", {}),
        origin=open_folder(tiny_model("llama", tied=True, **sizes)),
    )  # fmt: skip


def pruned_student(folder, scratch, **fields):
    scratch.mkdir(exist_ok=True)
    journal = Journal(scratch / "journal.jsonl", {})
    student = Student(open_folder(folder), scratch, journal)
    spec = Prune(**{"method": "magnitude", "sparsity": 0.5, **fields})
    prune.run(student, spec, context_of(student.teacher, scratch, journal))
    return student


@contextlib.contextmanager
def cut_before(at, monkeypatch):
    """Training that is begun inside crashes before a step."""
    real = training.Training._step

    def step(self, number):
        if number == at:
            raise Crash
        return real(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(training.Training, "_step", step)
        with pytest.raises(Crash):
            yield


def cut_ends_in_the_same_bits(tiny_model, folder, monkeypatch, **fields):
    """A student taught at once and one cut before step 6 end alike; what the stage told."""
    whole = narrow_student(tiny_model, folder / "whole")
    expected = teach(whole, folder / "whole", **fields)
    with cut_before(6, monkeypatch):
        teach(narrow_student(tiny_model, folder / "cut"), folder / "cut", **fields)
    torch.manual_seed(7)  # another process draws other numbers
    later = narrow_student(tiny_model, folder / "cut")
    assert teach(later, folder / "cut", **fields) == expected
    for name, tensor in (whole.outside() | whole.block(0)).items():
        assert torch.equal((later.outside() | later.block(0))[name], tensor)
    return expected


def again(folder, scratch):
    """The student of another process, its first stage taken up."""
    student = Student(open_folder(folder), scratch, Journal(scratch / "journal.jsonl", {}))
    for index in range(2):
        student.finished(index)
    return student

"""Students of tiny teachers, and how far they are from them."""

import shutil

import torch

from compress.journal import Journal
from compress.recipe.schema import Quantize, Restructure
from compress.results import Limits
from compress.stages import quantize, restructure
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.walk import hidden_states
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))


def run(folder, scratch, ids=IDS, *, batch_tokens=64, resident_bytes=1 << 30, **fields):
    scratch.mkdir(exist_ok=True)
    student = Student(open_folder(folder), scratch, Journal(scratch / "journal.jsonl", {}))
    context = Context(
        ids, "cpu", torch.float32, scratch, limits=Limits(batch_tokens, resident_bytes)
    )
    spec = Quantize(**{"group_size": 32, **fields})
    return student, quantize.run(student, spec, context)


def cut(teacher, scratch, ids=IDS, **fields):
    """A student of another shape, and what the stage `restructure` tells of it."""
    scratch.mkdir(exist_ok=True)
    journal = Journal(scratch / "journal.jsonl", {})
    student = Student(teacher, scratch, journal)
    context = Context(
        ids, "cpu", torch.float32, scratch, limits=Limits(64, 1 << 30), ledger=journal
    )
    return student, restructure.run(student, Restructure(**fields), context)


def begin(run, folder):
    """A copy of a finished run that knows its identity and its first block."""
    shutil.copytree(run, folder)
    journal = folder / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))


def states(weights):
    return hidden_states(weights, IDS, device="cpu", dtype=torch.float32)


def damage(student, folder):
    return float((states(student) - states(open_folder(folder))).square().mean())

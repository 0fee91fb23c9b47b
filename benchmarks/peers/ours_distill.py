"""Distil one student with compress, timed as trl_distill.py is; first, make what both read.

    python ours_distill.py --prepare TEXT.txt TEACHER STUDENT DATA.safetensors --scratch DIR
    python ours_distill.py TEACHER STUDENT DATA.safetensors --scratch DIR

The student is every second block of the teacher. The clock runs from the models at hand on: what
the teacher says of the text is in it, looks at the held-out windows and saved states are not.
Prints one JSON line at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - before the clock begins, as at the peer's
import torch
from distilling import CLIP, FINAL_RATE, WARMUP, Data, Looks, options, read
from safetensors.torch import save_file

from compress import machine, pipeline
from compress.calibrate import sets, tokens
from compress.journal import Journal
from compress.recipe.distill import Distill
from compress.recipe.load import load
from compress.recipe.sections import Calibration
from compress.results import Limits
from compress.stages import distill, training
from compress.stages.context import Context
from compress.stages.lessons import Order
from compress.student import Student
from compress.surgery.load import tokenizer
from compress.surgery.walk import empty_model
from compress.teacher.folder import open_folder
from compress.teacher.hidden import HiddenCache

RECIPE = """\
version: 1
teacher: {{model: {teacher}, dtype: bfloat16}}
stages: [{{restructure: {{blocks: every_second}}}}]
evaluate: {{suite: none}}
artifact: {{format: dense}}
"""


def prepare(given: argparse.Namespace) -> None:
    """Make the student, and windows in the order in which both sides read them."""
    given.scratch.mkdir(parents=True, exist_ok=True)
    recipe = given.scratch / "student.yaml"
    recipe.write_text(RECIPE.format(teacher=given.teacher))
    pipeline.compress_only(load(str(recipe)), out=given.student)
    count = given.samples + given.held_out
    asked = Calibration(set=str(given.prepare), samples=count, seq_len=given.seq_len)
    ids = sets.load(asked, tokenizer(given.teacher)).ids
    order = Order(given.samples, given.a_step, 0)
    rows = [window for step in range(given.steps) for window in order.of(step)]
    held = {"rows": ids[rows], "held": ids[given.samples :].clone(), "text": ids}
    save_file({**held, "a_step": torch.tensor(given.a_step)}, given.data)


def run(given: argparse.Namespace) -> None:
    """Train, and print the curve."""
    from safetensors.torch import load_file

    data, looks = read(given.data), Looks()
    here = machine.prepare("cpu", dtype="bfloat16", seed=0, threads=None)
    given.scratch.mkdir(parents=True, exist_ok=True)
    journal = Journal(given.scratch / "journal.jsonl", {})
    teacher, origin = open_folder(given.teacher), open_folder(given.student)
    student = Student(teacher, given.scratch, journal, origin=origin)
    said = HiddenCache(teacher, given.scratch / "said", "cpu", here.dtype)
    context = Context(
        data.held[:0], "cpu", here.dtype, given.scratch, limits=Limits(), ledger=journal,
        text=tokens.whole(load_file(given.data)["text"], source="text"), said=said.get,
    )  # fmt: skip
    student.enter(0)
    empty_model(teacher.config, here.dtype)  # what this imports, the peer has imported, too
    _watch(looks)
    looks.began, looks.paused = Looks().began, 0.0
    told = distill.run(student, _spec(given, data), context).distilled
    assert told is not None
    times = [0.0, *looks.marks]  # type: ignore[attr-defined]
    looks.curve = [(look.step, times[i], look.kl) for i, look in enumerate(told.checks)]
    looks.tell(dtype=str(here.dtype), threads=torch.get_num_threads())


def _spec(given: argparse.Namespace, data: Data) -> Distill:
    return Distill(
        held_out=len(data.held), steps=data.steps, batch_tokens=data.rows[: data.a_step].numel(),
        learning_rate=given.rate, check_every=given.look_every, patience=None, warmup=WARMUP,
        final_rate=FINAL_RATE, clip_norm=CLIP,
    )  # fmt: skip


def _watch(looks: Looks) -> None:
    """Let the clock stand while the student is built, looked at or saved."""
    looks.marks = []  # type: ignore[attr-defined]

    def stopped(function: Callable[..., Any], *, marked: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if marked:
                looks.marks.append(looks.seconds)  # type: ignore[attr-defined]
            with looks.pause():
                return function(*args, **kwargs)

        return call

    distill._learner = stopped(distill._learner)
    distill._held_out = stopped(distill._held_out)
    training.Training._check = stopped(training.Training._check, marked=True)  # type: ignore[method-assign]


def main() -> None:
    """Prepare, or train."""
    parser = options(__doc__ or "")
    parser.add_argument("--prepare", type=Path, help="a text: make the student and the windows")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--a-step", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    prepare(given) if given.prepare else run(given)


if __name__ == "__main__":
    main()

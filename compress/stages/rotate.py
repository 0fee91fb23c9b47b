"""Turn the student round inside before anything of it is rounded.

Nothing is written: a matrix made from a seed turns each weight when it is read. Later stages see a
model that says the same in another basis; so does the one walked beside the student.
"""

from __future__ import annotations

from functools import partial

from compress.recipe.rotate import Rotate
from compress.results import StageResult
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.rotate import rotated


def run(student: Student, spec: Rotate, _: Context) -> StageResult:
    """Let a student go on from its teacher turned.

    Raises:
        ModelError: its family cannot be turned; plans say so beforehand.
    """
    turn = partial(rotated, residual=spec.residual, values=spec.values, seed=spec.seed)
    student.become(turn)
    return StageResult("rotate", f"residual {spec.residual}, values {spec.values}", ())

"""The stages of a recipe, in order: where they can share their work, in all processes of a run."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial

import torch

from compress.artifact import output
from compress.evaluate.escalate import Attempt
from compress.plan.processes import shares
from compress.plan.sizes import Counter
from compress.recipe.schema import Stage
from compress.results import StageResult
from compress.run import Run
from compress.stages.context import Context
from compress.stages.table import STAGES
from compress.stages.team import ALONE
from compress.student import Student
from compress.teacher import headers


def student_of(run: Run, attempt: Attempt) -> Student:
    """A student as it is before the first stage."""
    return Student(
        run.teacher, run.folder / output.WORK, run.ledger, firsts=attempt.first_blocks,
        origin=run.origin,
    )  # fmt: skip


def carry_out(run: Run, student: Student, attempt: Attempt) -> tuple[StageResult, ...]:
    """Take a student through all stages.

    Raises:
        RunError: one failed.
        GateMissed: a linear shows a larger error than it may.
    """
    context = Context(
        run.windows.ids if run.windows else torch.empty(0, 1, dtype=torch.long),
        run.here.device,
        run.here.dtype,
        run.folder / output.WORK,
        run.watch,
        run.bounded.limits,
        run.recipe.linear_gate,
        attempt.raised,
        ledger=run.ledger,
        said=run.said.get,
        team=run.team,
    )
    counter = Counter(run.recipe, headers.of_folder(run.origin.folder, run.origin.name))
    results: list[StageResult] = []
    stages = run.recipe.stages
    for index, stage in enumerate(stages):
        student.enter(index, again=not (stage.restructure or stage.prune or stage.distill))
        ahead = stages[index + 1].quantize if stage.allocate else None
        given = results[-1].allocation if results else None
        bits, text = given.bits if given else {}, run.texts.get(index)
        smoothed = any(one.quantize and one.quantize.smooth for one in stages[:index])
        here = dataclasses.replace(
            context, ahead=ahead, smoothed=smoothed, allocated=bits, sizes=counter, text=text
        )
        with _shared(run, attempt, index):
            results.append(_carried_out(stage, student, here))
        if stage.restructure:
            counter = counter.cut(_like(counter.headers, student))
        if stage.prune:
            counter = dataclasses.replace(counter, kept=student.kept)
    student.settle()
    run.team.look_at_use()
    return tuple(results)


def _shared(run: Run, attempt: Attempt, index: int) -> contextlib.AbstractContextManager[None]:
    """A stage in common with other runs; a student that is made again shares nothing."""
    if run.prefixes is None or attempt.number:
        return contextlib.nullcontext()
    return run.prefixes.stage(index)


def _carried_out(stage: Stage, student: Student, context: Context) -> StageResult:
    """One stage, by all processes or, where it cannot share its work, by the first."""
    team, work = context.team, partial(STAGES[stage.name], student, stage.spec)
    if shares(stage):
        with team.together():
            return work(context)
    context = dataclasses.replace(context, team=ALONE)
    result = team.first(partial(work, context))
    if team.rank:
        work(context)  # nothing is left of it to do: its student becomes what the first's is
    return result


def _like(found: headers.Headers, student: Student) -> headers.Headers:
    """Headers of a student that was given another shape, and not another dtype."""
    dtype = found.dtypes[f"{found.anatomy.embedding}.weight"]
    dtypes = dict.fromkeys(student.anatomy.tensors, dtype)
    return dataclasses.replace(found, config=student.config, anatomy=student.anatomy, dtypes=dtypes)

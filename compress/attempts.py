"""One attempt at a student: made, written, judged as read back from disk; more where gates ask."""

from __future__ import annotations

from functools import partial

from compress.artifact import write
from compress.artifact.held import Held
from compress.artifact.layout import open_artifact
from compress.errors import GateMissed
from compress.evaluate import sizes
from compress.evaluate.escalate import Attempt
from compress.evaluate.glance import Hopes
from compress.evaluate.judge import Asked, Judgement, Reads, Said
from compress.results import Divergence, Results, StageResult
from compress.run import Clock, Run
from compress.staged import carry_out, student_of
from compress.student import Student
from compress.surgery import load
from compress.verify import reference


def judged(run: Run, clock: Clock, hopes: Hopes | None, attempt: Attempt) -> Results:
    """Make one student and judge it.

    Args:
        run: its recipe, teacher, folder and journal.
        clock: told how long it took.
        hopes: what a glance at the student must show for it to be judged.
        attempt: which one this is, and what the ones before it have raised.

    Raises:
        GivenUp: at a glance it is far from what is hoped for.
    """
    gates = run.recipe.evaluate.gates
    if attempt.number and gates:
        wider = f"more bits for {len(attempt.raised)} linears, from block {attempt.first_block} on"
        run.tell("escalate", attempt.number, gates.rounds_max, "round", wider)
    student = student_of(run, run.team.told(attempt))
    with clock.step("compress"):
        try:
            stages = carry_out(run, student, attempt)
        except GateMissed as gate:
            return _ended(run, student, gate)
        if not (gates and gates.escalates):
            run.team.dismiss()
        told = reference.record(
            Held(student, run.recipe.artifact.format), load.tokenizer(run.teacher.folder)
        )
        run.ledger.add(unit_of(attempt.number, "reference"), told)
        write_student(run, student)
    with clock.step("evaluate"):
        if hopes and not (gates and gates.escalates):
            _look_at(run, hopes)
        return _judged(run, stages, attempt)


def unit_of(attempt: int, name: str) -> str:
    """A unit of the journal that belongs to one attempt."""
    return f"attempt-{attempt}/{name}"


def write_student(run: Run, student: Student) -> None:
    """Write a student into the folder of its run."""
    run.tell("write", 0, 1, "artifact")
    # what a killed process or an attempt before this one wrote counts as whole no more
    (run.folder / "config.json").unlink(missing_ok=True)
    write.write(
        run.folder,
        student.parts(),
        anatomy=student.anatomy,
        config=student.config,
        tokenizer_files=write.companions(run.origin.folder),
        format=run.recipe.artifact.format,
        max_shard_bytes=run.recipe.artifact.max_shard_bytes,
        kept=student.kept,
    )
    run.tell("write", 1, 1, "artifact")


def _ended(run: Run, student: Student, gate: GateMissed) -> Results:
    """What is known of a student whose walk a gate has ended."""
    before = sizes.side_before(run.teacher, sizes.parts_before(run.teacher), None)
    linears = (*student.results(), *gate.linears)
    name, method = next(
        (stage.name, spec.method)
        for stage in run.recipe.stages
        if (spec := stage.quantize or stage.prune)
    )
    stages = (StageResult(name, method, linears),)
    return Results(run.provenance, before, None, None, stages, ())


def _look_at(run: Run, hopes: Hopes) -> None:
    """Look at what was written before all of it is judged.

    Raises:
        GivenUp: it is far from what is hoped for.
    """
    artifact = open_artifact(run.folder)
    hopes.check_size(artifact.size_bytes)
    if run.judge and hopes.kl_mean_max is not None:
        glance = partial(run.judge.glance, run.teacher, artifact)
        hopes.check(run.once(unit_of(0, "glance"), Divergence, glance))


def _judged(run: Run, stages: tuple[StageResult, ...], attempt: Attempt) -> Results:
    """Judge what was written, as read back from disk."""
    artifact, teacher = open_artifact(run.folder), run.teacher
    parts = sizes.parts_before(teacher)
    by_part = sizes.by_part(parts, artifact)
    if (judge := run.judge) is None:
        before, after = sizes.side_before(teacher, parts, None), sizes.side_after(artifact, None)
        return Results(run.provenance, before, after, None, stages, by_part)
    number = attempt.number
    read = run.once(unit_of(number, "texts"), Reads, partial(judge.read, teacher, artifact))
    asked = run.once(unit_of(number, "tasks"), Asked, partial(judge.ask, teacher, artifact))
    said = Said(())
    if "samples" not in run.bounded.left_out:
        said = run.once(unit_of(number, "samples"), Said, partial(judge.say, teacher, artifact))
    return Results(
        run.provenance,
        sizes.side_before(teacher, parts, Judgement(read.before, asked.before)),
        sizes.side_after(artifact, Judgement(read.after, asked.after)),
        read.divergence,
        stages,
        by_part,
        said.samples,
    )

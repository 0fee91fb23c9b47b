"""Train the student, as earlier stages left it, on what its teacher says.

What was taken away stays away: the model keeps its shape and pruned weights stay zero. Integers
stay, or move from step to step of their grids. Kept is the state of the lowest held-out KL.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.calibrate.tokens import Windows
from compress.kernels.distillation import Head, Objective, States, distillation
from compress.kernels.grid import Rounded
from compress.kernels.masks import pruned
from compress.kernels.straight_through import start
from compress.machine import freed_memory_kept
from compress.recipe.distill import ROUNDED, Distill
from compress.recipe.loss import Hidden
from compress.results import Distilled, StageResult, from_json
from compress.stages import lora
from compress.stages.context import Context
from compress.stages.keeping import forget
from compress.stages.lessons import Lessons, Said
from compress.stages.policy import Writer
from compress.stages.training import Course, Training
from compress.student import HEAD, Student
from compress.surgery.beside import Beside
from compress.surgery.grids import Grid
from compress.surgery.learning import Learner
from compress.surgery.matching import Matched
from compress.surgery.walk import Weights, head_of, hidden_states

log = logging.getLogger("compress")


def run(student: Student, spec: Distill, context: Context) -> StageResult:
    """Teach a student, in as many processes as there are.

    Raises:
        TrainingError: the loss is no number, or the held-out KL grows out of hand.
    """
    told = context.noted(student.unit("distilled"))
    if told is None:
        told = dataclasses.asdict(_taught(student, spec, context))
        context.team.first(partial(_settle, student, context, told))
    _take_up(student)
    found = from_json(Distilled, json.dumps(told))
    if spec.train not in ROUNDED and found.kept_step:
        student.become(lambda past: past)  # rounding makes up for what rounding loses, not for this
    return StageResult("distill", found.asked, (), distilled=found)


def _settle(student: Student, context: Context, told: Mapping[str, Any]) -> None:
    """Note what came of it, and let go of the state of the training."""
    context.note(student.unit("distilled"), told)
    forget(context, student.unit("training"))


def _take_up(student: Student) -> None:
    """Go on with every unit that was committed."""
    for index in _units(student):
        student.finished(index)


def _taught(student: Student, spec: Distill, context: Context) -> Distilled:
    """Train, commit every unit that changed, and measure what is stored."""
    text = context.text
    if text is None:
        raise TypeError("a stage that trains is given a text")
    exam = _said(context, slice(-spec.held_out, None))
    before = _held_out(student, exam, context)
    learner = _learner(student, spec, context)
    lessons = _lessons(learner, student, spec, context)
    learned_weights = sum(p.numel() for p in learner.learning().values())
    _warn(spec, lessons.said.ids, exam.ids, learned_weights, context)
    training = Training(
        learner, spec, context, unit=student.unit("training"), pruned=frozenset(student.kept),
        lessons=lessons, exam=exam,
    )  # fmt: skip
    with freed_memory_kept():
        course = training.run()
    changed = 0
    if course.kept_step:
        learned = partial(_learned, learner, merge=bool(spec.lora))
        if context.team.sharded:  # all put it together, the first writes it
            learned = partial(dict, learned())
        changed = context.team.first(lambda: _commit(student, learned()))
        _take_up(student)
    after = _held_out(student, exam, context) if course.kept_step else before
    _warn_of_no_gain(course, before, after, context)
    told = _told(spec, text, course, training.steps, learned_weights)
    return dataclasses.replace(
        told, kl_before=before, kl_after=after,
        changed_codes=changed if spec.train == "codes" else None,
        embeddings=spec.embedding_learning_rate is not None,
    )  # fmt: skip


def _warn(spec: Distill, read: Tensor, exam: Tensor, learned: int, context: Context) -> None:
    """Say where a text is too little, or no test of what was learned from it."""
    if context.team.rank:
        return
    windows, seq_len = read.shape
    for caution in spec.cautions(windows, seq_len, learned):
        log.warning("distill: %s.", caution)
    known = {window.numpy().tobytes() for window in read}
    if again := sum(window.numpy().tobytes() in known for window in exam):
        log.warning(
            "distill: %d of %d held-out windows are trained on, too: the held-out KL flatters the "
            "student. Give a text that does not repeat itself.", again, len(exam),
        )  # fmt: skip


def _warn_of_no_gain(course: Course, before: float, after: float, context: Context) -> None:
    """Say where nothing was won: in training, or, by a little, in the dtype that is stored."""
    if context.team.rank or after < before:
        return
    if course.kept_step:
        log.warning(
            "distill: won nothing: as the student is stored, its held-out KL of %.4g nats is %.2g "
            "more than before; what it learned was less than its dtype or codes can tell. Raise "
            "learning_rate, or give more steps.", after, after - before,
        )  # fmt: skip
    else:
        log.warning(
            "distill: won nothing: no look at held-out text was better than the first; the student "
            "is as it was. Lower learning_rate, or give more text."
        )


def _said(context: Context, which: slice) -> Said:
    """Some of the windows, and what the teacher says of them."""
    if context.text is None or context.said is None:
        raise TypeError("a stage that trains is given a text, and what its teacher says of it")
    ids, weights = context.text.ids, context.text.weights
    some = None if weights is None else weights[which]
    return Said(ids[which], context.said, context.team, some)


def _lessons(learner: Learner, student: Student, spec: Distill, context: Context) -> Lessons:
    """The windows to train on, and the teacher beside where it is asked for what it has not said.

    That is what it says behind its blocks, and of what the student writes.
    """
    said, asked = _said(context, slice(None, -spec.held_out)), _matched(student, spec)
    blocks = tuple(block for _, block in asked.pairs) if asked else ()
    if not (blocks or spec.on_policy):
        return Lessons(said)
    count = len(student.teacher.anatomy.blocks) if spec.on_policy else max(blocks) + 1
    beside = Beside(student.teacher, count, device=context.device, dtype=context.dtype)
    if spec.on_policy is None:
        return Lessons(said, beside, blocks)
    ends = student.teacher.config.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    end = frozenset(int(one) for one in listed if one is not None)
    return Lessons(said, beside, blocks, Writer(learner, spec.on_policy, spec.seed, end))


def _matched(student: Student, spec: Distill) -> Matched | None:
    """What is asked of hidden states."""
    asked = spec.loss.hidden
    if asked is None:
        return None
    counts = len(student.anatomy.blocks), len(student.teacher.anatomy.blocks)
    return Matched(asked.pairs(*counts), asked.measure, asked.weight, spec.seed)


def _learner(student: Student, spec: Distill, context: Context) -> Learner:
    loss = spec.loss
    learner = Learner(
        student, student.teacher, dtype=context.dtype,
        learns=_grids(student, spec, context) if spec.train in ROUNDED else None,
        objective=Objective(loss.kind, loss.temperature, loss.beta or 0.5, loss.cross_entropy),
        embeddings=spec.embedding_learning_rate is not None, matched=_matched(student, spec),
    )  # fmt: skip
    if spec.lora:
        lora.attach(learner.model, learner.anatomy, spec.lora, spec.seed)
    return learner


def _grids(student: Student, spec: Distill, context: Context) -> Iterator[tuple[str, Grid]]:
    """What makes the weights of all that has become codes; a head keeps its codes."""
    transposed = {linear.name for linear in student.anatomy.linears if linear.transposed}
    for unit in _units(student):
        learns = spec.train == "codes" and unit != HEAD
        before = student.base.block(unit) if learns and not context.smoothed else {}
        for name, matrix in _rounded(student, unit).items():
            exact = before.get(f"{name}.weight")
            if exact is not None and name in transposed:
                exact = exact.T
            looked_up = name == student.anatomy.embedding  # which no product makes narrow
            grid = Grid(
                matrix, latent=start(matrix, exact) if learns else None,
                masked=name in student.kept, transposed=name in transposed,
                dtype=torch.float32 if looked_up else context.dtype,
            )  # fmt: skip
            yield name, grid


def _rounded(student: Student, unit: int) -> dict[str, Rounded]:
    """What has become codes in a unit."""
    found = {name: student.rounded(name) for name in sorted(student.coded(unit))}
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def _learned(learner: Learner, *, merge: bool) -> dict[str, Tensor | Rounded]:
    """What was learned, by name."""
    return dict(lora.merged(learner.model, learner.anatomy) if merge else learner.learned())


def _commit(student: Student, found: Mapping[str, Tensor | Rounded]) -> int:
    """Make what was learned final, unit by unit; a unit that a cut run committed is taken up.

    Returns:
        How many codes changed.
    """
    changed = 0
    for unit in _units(student):
        kept, before = student.kept, _rounded(student, unit)
        stored = student.outside() if unit == HEAD else student.block(unit)
        plain = {
            name: _as_stored(now, was, masked=name.removesuffix(".weight") in kept)
            for name, was in stored.items()
            if isinstance(now := found.get(name), Tensor)
        }
        rounded = {name: now for name in before if isinstance(now := found.get(name), Rounded)}
        changed += sum(int((now.codes != before[n].codes).sum()) for n, now in rounded.items())
        if student.finished(unit) is None and (plain or rounded):
            student.commit(unit, rounded, (), plain)
    return changed


def _as_stored(learned: Tensor, was: Tensor, *, masked: bool) -> Tensor:
    """In the dtype that it had; of a pruned weight exactly those places stay that did."""
    return pruned(learned, was != 0, was.dtype) if masked else learned.to(was.dtype)


def _units(student: Student) -> list[int]:
    return [HEAD, *(block.index for block in student.anatomy.blocks)]


def _held_out(student: Student, exam: Said, context: Context) -> float:
    """KL(teacher || student) of the held-out windows as the student is stored, nats per token."""
    mine = context.team.own(len(exam.ids))
    found = _divergence(student, exam, list(mine), context) if mine else 0.0
    return context.team.mean(found, exam.count(mine))


def _divergence(student: Student, exam: Said, windows: list[int], context: Context) -> float:
    """The same of some of them."""
    lesson = exam.of(windows)
    hidden = hidden_states(student, lesson.ids, device=context.device, dtype=context.dtype)
    own, theirs = (
        States(states.flatten(0, 1), _head(weights))
        for states, weights in ((hidden, student), (lesson.said, student.teacher))
    )
    with torch.no_grad():
        asked = Objective()
        return float(distillation(own, theirs, asked, weights=lesson.asked, dtype=torch.float32))


def _head(weights: Weights) -> Head:
    return Head(*head_of(weights), weights.config.get("final_logit_softcapping"))


def _told(
    spec: Distill, text: Windows, course: Course, steps: int, learned_weights: int
) -> Distilled:
    windows, seq_len = text.ids.shape
    taken = course.checks[-1].step
    return Distilled(
        _asked(spec), spec.train, spec.text.told if spec.text else "the calibration",
        text.fingerprint,
        (windows - spec.held_out) * seq_len, taken * spec.windows_a_step(seq_len) * seq_len,
        spec.held_out * seq_len, learned_weights, steps, course.kept_step, course.stopped,
        0.0, 0.0, course.checks,
    )  # fmt: skip


def _asked(spec: Distill) -> str:
    """The loss in a few words."""
    loss = spec.loss
    words = loss.kind.replace("_", " ")
    words += f" (beta {loss.beta:g})" if loss.beta is not None else ""
    words += f" at temperature {loss.temperature:g}" if loss.temperature != 1 else ""
    mixed = f", {100 * loss.cross_entropy:g} % cross-entropy" if loss.cross_entropy else ""
    words += mixed + (_beside(loss.hidden) if loss.hidden else "")
    own = f", {100 * spec.on_policy.share:g} % of steps on its own text" if spec.on_policy else ""
    return words + own


def _beside(hidden: Hidden) -> str:
    """What is asked of hidden states, in a few words."""
    where = "" if isinstance(hidden.blocks, str) else f" behind {len(hidden.blocks)} blocks"
    return f", {hidden.weight:g} times the {hidden.measure} of hidden states{where}"

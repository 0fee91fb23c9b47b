"""A recipe carried out: `apply` is the flow, in order, and each step has a room of its own name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from compress import machine, plan, storage
from compress.artifact import manifest, output, write
from compress.artifact.layout import open_artifact
from compress.calibrate import sets
from compress.calibrate.selfgen import Author
from compress.calibrate.tokens import Windows
from compress.evaluate import sizes, speed
from compress.evaluate.judge import Asked, Judge, Judgement, Reads, Said
from compress.evaluate.model import evaluate, judge_for
from compress.journal import Journal
from compress.machine import Machine
from compress.recipe import resolve
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.suite import Suite, suite_of
from compress.report import markdown, pages
from compress.results import (
    Measured,
    Progress,
    Provenance,
    Results,
    StageResult,
    from_json,
    to_json,
)
from compress.stages.context import Context
from compress.stages.table import STAGES
from compress.student import Student
from compress.surgery import load
from compress.surgery.walk import Watch
from compress.teacher import sources
from compress.teacher.folder import Teacher

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")
__all__ = ["Outcome", "apply", "compress_only", "evaluate", "write_records"]


@dataclass(frozen=True)
class Outcome:
    """A finished run: the folder it left and what it found."""

    folder: Path
    results: Results
    measured: Measured


@dataclass
class _Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)
    _begun: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 3)

    def stop(self) -> dict[str, float]:
        return {**self.seconds, "total": round(time.perf_counter() - self._begun, 3)}


@dataclass(frozen=True)
class _Run:
    """What a run works with, once everything that can be wrong has been looked at."""

    recipe: Recipe
    folder: Path
    here: Machine
    teacher: Teacher
    windows: Windows | None
    judge: Judge | None
    journal: Journal
    watch: Watch

    def tell(self, progress: Progress) -> None:
        if self.watch:
            self.watch(progress)

    def once(self, unit: str, kind: type[T], make: Callable[[], T]) -> T:
        """What a unit of the journal found, now or in the run that was cut short."""
        if (kept := self.journal.get(unit)) is not None:
            return from_json(kind, json.dumps(kept))
        made = make()
        self.journal.add(unit, dataclasses.asdict(made))
        return made


def apply(
    recipe: Recipe,
    *,
    out: Path,
    device: str = "cpu",
    threads: int | None = None,
    watch: Watch = None,
    places: Places | None = None,
    fresh: bool = False,
) -> Outcome:
    """Carry out a recipe: from its teacher to a finished, judged artifact.

    Work lives in ``OUT.partial``, with a journal of what is finished, and gets its name when it is
    whole. A run that was cut short goes on where it stopped, to the same bytes; one that had
    finished nothing leaves nothing.

    Args:
        recipe: as loaded; a lock's fingerprints are held against what is found.
        out: the folder to make.
        device: cpu or cuda.
        threads: processor threads; a lock's own, or torch's choice, by default.
        watch: told of progress.
        places: where the recipe's parts were written, so that late mistakes can name their lines.
        fresh: forget what an earlier run has begun.

    Raises:
        RequestError: the recipe cannot be carried out, `out` is there already, or what is
            unfinished there is another run's.
        RunError: it could, and something failed.
    """
    clock, suite = _Clock(), suite_of(recipe)
    with output.in_the_making(out, fresh=fresh) as partial:
        here = _machine(recipe, device, threads)
        run = _prepare(recipe, partial, here, suite, watch, places, clock)
        resumed = len(run.journal.finished)
        with clock.step("compress"):
            stages = _compress(run)
        locked = _lock(run)
        storage.write_text(partial / "recipe.lock.yaml", locked)
        with clock.step("evaluate"):
            results = _judged(run, stages, locked)
        with clock.step("time"):
            timings = speed.timings(partial)
        measured = Measured(
            clock.stop(),
            machine.peak_memory_bytes(),
            machine.hardware(),
            machine.today(),
            timings.decode_tokens_per_second if timings else None,
            timings.prefill_tokens_per_second if timings else None,
            resumed,
        )
        write_records(partial, results, measured)
        facts = {"teacher": run.teacher.name, "teacher_fingerprint": run.teacher.fingerprint}
        manifest.write_manifest(partial, {**facts, "versions": machine.versions()})
    return Outcome(out, results, measured)


def compress_only(
    recipe: Recipe, *, out: Path, device: str = "cpu", threads: int | None = None
) -> dict[str, Any]:
    """Carry out a recipe without judging the student, and time what is compared with other tools.

    Returns:
        ``seconds`` from the token windows at hand to the last shard on disk, and the windows'
        ``calibration_fingerprint``, None when no stage looks at any.
    """
    clock = _Clock()
    with output.in_the_making(out) as partial:
        here = _machine(recipe, device, threads)
        run = _prepare(recipe, partial, here, None, None, None, clock)
        with clock.step("compress"):
            _compress(run)
    fingerprint = run.windows.fingerprint if run.windows else None
    return {"seconds": clock.seconds["compress"], "calibration_fingerprint": fingerprint}


def write_records(folder: Path, results: Results, measured: Measured) -> None:
    """Write results, times, both reports and the model card."""
    storage.write_text(folder / "results.json", to_json(results))
    storage.write_text(folder / "measured.json", to_json(measured))
    pages.write(folder, results, measured)
    storage.write_text(folder / "README.md", markdown.model_card(results, None))


def _machine(recipe: Recipe, device: str, threads: int | None) -> Machine:
    locked = recipe.resolved
    return machine.prepare(
        device,
        dtype=recipe.teacher.dtype,
        seed=recipe.seed,
        threads=threads or locked.threads,
        locked_device=locked.device,
    )


def _prepare(
    recipe: Recipe,
    folder: Path,
    here: Machine,
    suite: Suite | None,
    watch: Watch,
    places: Places | None,
    clock: _Clock,
) -> _Run:  # fmt: skip
    """Look at everything that can be wrong before any long work; take up what is unfinished."""
    with clock.step("teacher"):
        teacher = sources.of_recipe(recipe, watch=watch)
    plan.check(recipe, teacher.anatomy, places, config=teacher.config, suite=suite)
    judge = None if suite is None else judge_for(teacher.folder, suite, here, watch)
    if judge:
        judge.read_texts()
        judge.check_tasks()
    with clock.step("calibrate"):
        windows = _windows(recipe, teacher, here, watch)
    identity = {
        "recipe": resolve.explicit(recipe),
        "teacher": teacher.fingerprint,
        "calibration": windows.fingerprint if windows else None,
        "machine": here.identity,
    }
    journal = Journal(folder / output.JOURNAL, identity)
    run = _Run(recipe, folder, here, teacher, windows, judge, journal, watch)
    if found := journal.finished:
        run.tell(Progress("resume", len(found), len(found), "unit", f"behind {found[-1]}"))
    return run


def _windows(recipe: Recipe, teacher: Teacher, here: Machine, watch: Watch) -> Windows | None:
    tokenizer = load.tokenizer(teacher.folder)
    cache = sources.cache_folder() / "written"
    author = Author(teacher, tokenizer, teacher.fingerprint, cache, here.device, watch)
    return sets.of_recipe(recipe, tokenizer, author)


def _compress(run: _Run) -> tuple[StageResult, ...]:
    """Run the stages, then write the artifact."""
    scratch = run.folder / output.WORK
    ids = run.windows.ids if run.windows else torch.empty(0, 1, dtype=torch.long)
    context = Context(ids, run.here.device, run.here.dtype, scratch, run.watch)
    student = Student(run.teacher, scratch, run.journal)
    results = []
    for index, stage in enumerate(run.recipe.stages):
        (name,) = stage.model_fields_set
        student.enter(index)
        results.append(STAGES[name](student, getattr(stage, name), context))
    if run.journal.get("write") is None:
        _write(run, student)
    return tuple(results)


def _write(run: _Run, student: Student) -> None:
    run.tell(Progress("write", 0, 1, unit="artifact"))
    write.write(
        run.folder,
        student.parts(),
        anatomy=run.teacher.anatomy,
        config=run.teacher.config,
        tokenizer_files=write.companions(run.teacher.folder),
        format=run.recipe.artifact.format,
        max_shard_bytes=run.recipe.artifact.max_shard_bytes,
    )
    run.journal.add("write", {}, [path for path in run.folder.iterdir() if path.is_file()])
    run.tell(Progress("write", 1, 1, unit="artifact"))


def _judged(run: _Run, stages: tuple[StageResult, ...], locked: str) -> Results:
    """Judge what was written, as read back from disk."""
    artifact, provenance = open_artifact(run.folder), _provenance(run, locked)
    parts = sizes.parts_before(run.teacher)
    by_part = sizes.by_part(parts, artifact)
    if run.judge is None:
        before = sizes.side_before(run.teacher, parts, None)
        after = sizes.side_after(artifact, None)
        return Results(provenance, before, after, None, stages, by_part)
    read = run.once("evaluate/texts", Reads, partial(run.judge.read, run.teacher, artifact))
    asked = run.once("evaluate/tasks", Asked, partial(run.judge.ask, run.teacher, artifact))
    said = run.once("evaluate/samples", Said, partial(run.judge.say, run.teacher, artifact))
    return Results(
        provenance,
        sizes.side_before(run.teacher, parts, Judgement(read.before, asked.before)),
        sizes.side_after(artifact, Judgement(read.after, asked.after)),
        read.divergence,
        stages,
        by_part,
        said.samples,
    )


def _lock(run: _Run) -> str:
    windows = run.windows
    return resolve.lock(
        run.recipe,
        {
            "teacher_revision": run.teacher.revision,
            "teacher_sha256": run.teacher.source_sha256,
            "calibration_revision": windows.revision if windows else None,
            "teacher_fingerprint": run.teacher.fingerprint,
            "calibration_fingerprint": windows.fingerprint if windows else None,
            "threads": torch.get_num_threads(),
            "device": run.here.device,
            "versions": machine.versions(),
        },
    )


def _provenance(run: _Run, locked: str) -> Provenance:
    recipe, windows = run.recipe, run.windows
    return Provenance(
        recipe=recipe.resolved.recipe or "recipe",
        recipe_text=locked,
        teacher=run.teacher.name,
        teacher_fingerprint=run.teacher.fingerprint,
        calibration=recipe.calibration.set if windows else "none",
        calibration_fingerprint=windows.fingerprint if windows else "",
        calibration_tokens=windows.ids.numel() if windows else 0,
        seed=recipe.seed,
        threads=torch.get_num_threads(),
        device=run.here.device,
        versions=machine.versions(),
    )

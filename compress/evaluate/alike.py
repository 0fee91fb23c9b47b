"""Judge several folders alike: by one suite, beside one teacher, timed one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from compress import machine
from compress.artifact.layout import Artifact, open_artifact
from compress.artifact.records import LOCK
from compress.errors import EvaluationError
from compress.evaluate import speed
from compress.evaluate.judge import Judge
from compress.evaluate.model import is_quantized, judge_for
from compress.recipe.load import load as load_recipe
from compress.recipe.schema import Recipe
from compress.recipe.suite import Suite, load_suite
from compress.results import Progress
from compress.results.comparison import Judged, Reply
from compress.surgery import load
from compress.surgery.walk import Watch
from compress.teacher import sources
from compress.teacher.folder import Teacher, open_folder


def judge_alike(
    folders: Sequence[Path],
    *,
    suite: str = "quick",
    teacher: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    watch: Watch = None,
) -> list[Judged]:
    """Judge artifacts and plain model folders, and time each in a process of its own.

    Args:
        folders: what is judged.
        suite: a shipped suite or a path.
        teacher: whom all are held against, as a recipe names it; else the one that all locks name.
        device: cpu or cuda; speed is that of the processor.
        threads: of the processor, the same for all; torch's choice by default.
        watch: told of progress.

    Raises:
        RequestError: a folder, a lock, the suite or the teacher is not what it should be.
        RunError: a measurement could not be taken.
    """
    locks = {one: load_recipe(str(one / LOCK)) for one in folders if (one / LOCK).is_file()}
    count = threads or torch.get_num_threads()
    court = _Court(load_suite(suite), locks, teacher, device, count, watch)
    judged = [court.judged(folder) for folder in folders]
    return [
        _timed(one, folder, Progress("time", place, len(folders), "artifact"), count, watch)
        for place, (one, folder) in enumerate(zip(judged, folders, strict=True))
    ]


@dataclass(frozen=True)
class _Court:
    """What is the same for all that are judged."""

    suite: Suite
    locks: Mapping[Path, Recipe]
    named: str | None  # the teacher that was asked for
    device: str
    threads: int
    watch: Watch
    said: dict[str, list[str]] = field(default_factory=dict)  # by teachers, asked once

    def judged(self, folder: Path) -> Judged:
        """One folder; beside a teacher where there is one with the same tokens."""
        own = self.locks.get(folder)
        dtype = self._dtype or (own.teacher.dtype if own else "bfloat16")
        here = machine.prepare(
            self.device, dtype=dtype, seed=own.seed if own else 0, threads=self.threads
        )
        teacher, notes = self._teacher_of(own)
        model = _opened(folder, own, teacher, self._dtype)
        if model is teacher:
            notes = (f"the teacher itself, read in {dtype}",)
        elif teacher and (own is None or self.named) and (why := _unlike(folder, model, teacher)):
            teacher, notes = None, (f"no KL: {why}",)
        judge = judge_for(teacher.folder if teacher else folder, self.suite, here, self.watch)
        if teacher is None:
            found = judge.alone(model)
            return Judged(
                found.perplexity, found.tasks, dtype, replies=self._replies(judge, model, None),
                notes=notes,
            )  # fmt: skip
        read, asked = judge.read(teacher, model), judge.ask(teacher, model)
        return Judged(
            read.after, asked.after, dtype, read.divergence, teacher.name, teacher.fingerprint,
            self._replies(judge, model, teacher), notes=notes,
        )  # fmt: skip

    def _replies(
        self, judge: Judge, model: Artifact | Teacher, teacher: Teacher | None
    ) -> tuple[Reply, ...]:
        """What a model answers to the suite's prompts, and its teacher."""
        if teacher and teacher.fingerprint not in self.said:
            self.said[teacher.fingerprint] = judge.answers(teacher)
        theirs = self.said[teacher.fingerprint] if teacher else [None] * len(judge.prompts)
        mine = theirs if model is teacher else judge.answers(model)
        return tuple(
            Reply(prompt, told, str(answer))
            for prompt, told, answer in zip(judge.prompts, theirs, mine, strict=True)
        )

    def _teacher_of(self, own: Recipe | None) -> tuple[Teacher | None, tuple[str, ...]]:
        """Whom a folder is held against; else what to do for there to be one."""
        if self._common:
            return self._common, ()
        if own:
            return sources.of_recipe(own, watch=self.watch), ()
        names = ", ".join(dict.fromkeys(str(one.teacher.model) for one in self.locks.values()))
        why = f"the locks name several teachers ({names})" if names else "no lock names a teacher"
        return None, (f"no KL: {why}; --teacher FOLDER says which to hold it against",)

    @cached_property
    def _dtype(self) -> str | None:
        """In which all locks have their teacher; None where they differ, or there is none."""
        found = {one.teacher.dtype for one in self.locks.values()}
        return found.pop() if len(found) == 1 else None

    @cached_property
    def _common(self) -> Teacher | None:
        """The teacher that was asked for, or else that all locks agree on."""
        if self.named:
            found = sources.fetch(self.named, dtype=self._dtype or "bfloat16", watch=self.watch)
            return found.cast(self._dtype) if self._dtype else found
        marks = {one.resolved.teacher_fingerprint or one.teacher for one in self.locks.values()}
        if len(marks) != 1:
            return None
        return sources.of_recipe(next(iter(self.locks.values())), watch=self.watch)


def _opened(
    folder: Path, own: Recipe | None, teacher: Teacher | None, dtype: str | None
) -> Artifact | Teacher:
    """The model in a folder: the teacher itself where it is that."""
    if own is not None or is_quantized(folder):
        return open_artifact(folder)
    plain = open_folder(folder)
    read = plain.cast(dtype) if dtype else plain
    return teacher if teacher and read.fingerprint == teacher.fingerprint else plain


def _unlike(folder: Path, model: Artifact | Teacher, teacher: Teacher) -> str | None:
    """Why what a model expects cannot be held against what a teacher expects; None: it can."""
    mine, theirs = (one.config.get("vocab_size") for one in (model, teacher))
    if mine != theirs:
        return f"it chooses among {mine} tokens, the teacher {teacher.name} among {theirs}"
    why = load.spelled_otherwise(*(load.tokenizer(one) for one in (folder, teacher.folder)))
    return f"its tokenizer is not that of the teacher {teacher.name}: {why}" if why else None


def _timed(judged: Judged, folder: Path, now: Progress, threads: int, watch: Watch) -> Judged:
    """The same with its speed, or with why it has none."""
    if watch:
        watch(replace(now, detail=folder.name))
    try:
        found = speed.timed_alone(folder, threads)
    except EvaluationError as error:
        return replace(judged, notes=(*judged.notes, f"not timed: {error}"))
    if watch:
        watch(replace(now, done=now.done + 1, detail=folder.name))
    return replace(judged, timed=found)

"""One run: what it works with once everything that can be wrong has been looked at."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from compress import library, machine, plan
from compress.anatomy import Anatomy
from compress.calibrate import sets
from compress.calibrate.selfgen import Author
from compress.calibrate.tokens import Windows
from compress.errors import RunError
from compress.evaluate.judge import Judge
from compress.evaluate.model import judge_for
from compress.journal import Journal
from compress.machine import Machine
from compress.plan import footprint
from compress.plan.memory import Bounded
from compress.prefixes import Prefixes
from compress.recipe import resolve
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.suite import Suite, suite_of
from compress.results import Limits, Progress, Provenance, from_json
from compress.stages.team import ALONE, Team
from compress.student import Ledger
from compress.surgery import load
from compress.surgery.walk import Watch
from compress.teacher import finite, headers, license, sources, spelling
from compress.teacher.folder import Teacher
from compress.teacher.hidden import HiddenCache

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")
log = logging.getLogger("compress")


class Clock:
    """Seconds by step: on the clock of the wall, and of processors, all threads added up."""

    def __init__(self) -> None:
        """Begin now."""
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        machine.forget_peak_memory()  # what is told with the times is of the same run
        self._begun = (time.perf_counter(), machine.cpu_seconds())

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what runs inside, beside what was timed under that name before."""
        begun = (time.perf_counter(), machine.cpu_seconds())
        yield
        self._add(name, begun)

    def stop(self) -> None:
        """Note what was spent since the clock began, as `total`."""
        self._add("total", self._begun)

    def _add(self, name: str, begun: tuple[float, float]) -> None:
        for kind, now, then in (
            (self.seconds, time.perf_counter(), begun[0]),
            (self.cpu_seconds, machine.cpu_seconds(), begun[1]),
        ):
            kind[name] = round(kind.get(name, 0.0) + now - then, 3)


@dataclass(frozen=True)
class Run:
    """A recipe, its teacher and text, the machine, and what has been finished of it already."""

    recipe: Recipe
    folder: Path
    here: Machine
    bounded: Bounded
    teacher: Teacher
    origin: Teacher  # what the student begins as: the teacher, or another model
    windows: Windows | None
    texts: Mapping[int, Windows]  # that stages train on, by their place
    judge: Judge | None
    ledger: Ledger  # the journal, as this process sees it
    watch: Watch
    team: Team = ALONE  # the processes that share its stages
    resumed: int = 0  # units that an earlier run had finished
    prefixes: Prefixes | None = None  # stages in common with other runs

    def tell(self, step: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Report progress to whoever watches."""
        if self.watch:
            self.watch(Progress(step, done, total, unit, detail))

    @property
    def said(self) -> HiddenCache:
        """What the teacher says of texts that stages train on."""
        folder, watch = library.cache_folder() / "said", self.watch

        def told(record: Progress) -> None:
            if watch:
                watch(dataclasses.replace(record, step="teacher reads", detail=kept))

        width, item = self.teacher.anatomy.hidden_size, self.here.dtype.itemsize
        kept = f"{width * item:,} bytes a token"
        return HiddenCache(self.teacher, folder, self.here.device, self.here.dtype, told)

    def once(self, unit: str, kind: type[T], make: Callable[[], T]) -> T:
        """What a unit of the journal found, now or in the run that was cut short."""
        if (kept := self.ledger.get(unit)) is not None:
            return from_json(kind, json.dumps(kept))
        made = make()
        self.ledger.add(unit, dataclasses.asdict(made))
        return made

    @cached_property
    def lock(self) -> str:
        """The recipe with everything that was found out, as YAML."""
        windows = self.windows
        return resolve.lock(
            self.recipe,
            {
                "teacher_revision": self.teacher.revision,
                "teacher_sha256": self.teacher.source_sha256,
                **self._begun,
                "calibration_revision": windows.revision if windows else None,
                "teacher_fingerprint": self.teacher.fingerprint,
                "calibration_fingerprint": windows.fingerprint if windows else None,
                "text_revisions": {index: text.revision for index, text in self.texts.items()},
                "text_fingerprints": _fingerprints(self.texts),
                "threads": torch.get_num_threads(),
                "processes": self.team.size if self.team.size > 1 else None,
                "sharded": self.team.sharded or None,
                "device": self.here.device,
                "versions": machine.versions(),
            },
        )

    @property
    def _begun(self) -> dict[str, str | None]:
        """What was found out of the student's beginning, where that is not the teacher."""
        if self.recipe.student is None:
            return {}
        return {
            "student_revision": self.origin.revision,
            "student_sha256": self.origin.source_sha256,
            "student_fingerprint": self.origin.fingerprint,
        }

    @property
    def provenance(self) -> Provenance:
        """What decided the run, for its results."""
        recipe, windows = self.recipe, self.windows
        return Provenance(
            recipe=recipe.resolved.recipe or "recipe",
            recipe_text=self.lock,
            teacher=self.teacher.name,
            teacher_fingerprint=self.teacher.fingerprint,
            calibration=recipe.calibration.told if windows else "none",
            calibration_fingerprint=windows.fingerprint if windows else "",
            calibration_tokens=windows.ids.numel() if windows else 0,
            seed=recipe.seed,
            threads=torch.get_num_threads(),
            device=self.here.device,
            versions=machine.versions(),
            student=self.origin.name if recipe.student else "",
            student_fingerprint=self.origin.fingerprint if recipe.student else "",
            teacher_license=license.stated(self.teacher.folder),
            student_license=license.stated(self.origin.folder) if recipe.student else "",
        )


def set_up(recipe: Recipe, device: str, threads: int | None, team: Team = ALONE) -> Machine:
    """Set this process up to compute what a recipe asks for, maybe beside others of a team.

    Raises:
        RequestError: a lock was made on another device.
    """
    locked = recipe.resolved
    here = machine.prepare(
        device,
        dtype=recipe.teacher.dtype,
        seed=recipe.seed,
        threads=threads or locked.threads,
        locked_device=locked.device,
        processes=team.size,
        sharded=team.sharded,
    )
    for difference in resolve.version_differences(recipe, machine.versions()):
        log.warning("the lock was made with other versions: %s", difference)
    return here


def find_models(
    recipe: Recipe, suite: Suite | None, watch: Watch, places: Places | None, team: Team = ALONE
) -> tuple[Teacher, Teacher]:
    """Bring the teacher and what the student begins as, and hold the recipe against them.

    Returns:
        Both; the same where the student begins as its teacher.

    Raises:
        RequestError: one cannot be had, or the recipe cannot be carried out on them.
    """
    teacher = sources.of_recipe(recipe, watch=watch)

    def check(config: Mapping[str, Any], anatomy: Anatomy) -> None:
        plan.check(
            recipe, anatomy, places, config=config, suite=suite,
            teacher=teacher if recipe.student else None,
            processes=team.size, sharded=team.sharded,
        )  # fmt: skip

    other = sources.origin_of(recipe, teacher, watch=watch, places=places, check=check)
    origin = other or teacher
    check(origin.config, origin.anatomy)
    plan.check_budget(recipe, headers.of_folder(origin.folder, origin.name), places)
    if other:
        spelling.check(other, teacher)
        finite.check(other)
    finite.check(teacher)
    return teacher, origin


def find_judge(teacher: Teacher, suite: Suite | None, here: Machine, watch: Watch) -> Judge | None:
    """The judge of a suite, its texts and tasks looked at before any long work.

    Raises:
        CalibrationError: a text is missing or too short.
        EvaluationError: a task cannot be had.
    """
    if suite is None:
        return None
    judge = judge_for(teacher.folder, suite, here, watch)
    judge.read_texts()
    judge.check_tasks()
    return judge


def find_windows(
    recipe: Recipe, teacher: Teacher, here: Machine, watch: Watch
) -> tuple[Windows | None, dict[int, Windows]]:
    """The calibration of a recipe, None when no stage looks at it; and what its stages train on."""
    tokenizer = load.tokenizer(teacher.folder)
    cache = library.cache_folder() / "written"
    author = Author(teacher, tokenizer, teacher.fingerprint, cache, here.device, watch)
    windows = sets.of_recipe(recipe, tokenizer, author)
    return windows, sets.texts_of(recipe, tokenizer, author, windows)


@dataclass(frozen=True)
class Begun:
    """What the first of several processes tells the others of a run before its stages."""

    folder: Path
    models: tuple[str, str]  # fingerprints of the teacher and of what the student begins as
    machine: Mapping[str, object]
    bounded: Bounded
    windows: Windows | None
    texts: Mapping[int, Windows]
    finished: Mapping[str, Mapping[str, Any]]  # units, by an earlier run


def begun(run: Run, journal: Journal) -> Begun:
    """What others are told of a run."""
    finished = {unit: journal.get(unit) or {} for unit in journal.finished}
    return Begun(
        run.folder.absolute(), (run.teacher.fingerprint, run.origin.fingerprint),
        _alike(run.here), run.bounded, run.windows, run.texts, finished,
    )  # fmt: skip


def joined(recipe: Recipe, told: Begun, here: Machine, team: Team) -> Run:
    """The run that the first process has begun, as another of its processes sees it.

    Raises:
        RequestError: the teacher cannot be had here.
        RunError: this process would compute something else.
    """
    teacher = sources.of_recipe(recipe)
    origin = sources.origin_of(recipe, teacher) or teacher
    theirs = {**told.machine, "models": told.models}
    ours = {**_alike(here), "models": (teacher.fingerprint, origin.fingerprint)}
    if unlike := [f"{k}: {theirs[k]} there, {ours[k]} here" for k in ours if ours[k] != theirs[k]]:
        raise RunError(
            f"differs from the first process of the run in {'; '.join(unlike)}. All processes of "
            "a run need the same code, libraries and models.",
            section="processes",
        )
    team.hear_of(told.finished)
    return Run(
        recipe, told.folder, here, told.bounded, teacher, origin, told.windows, told.texts, None,
        team.ledger(None), None, team,
    )  # fmt: skip


def _alike(here: Machine) -> dict[str, object]:
    """What all processes of a run must have in common."""
    return {name: value for name, value in here.identity.items() if name != "threads"}


def job(recipe: Recipe, here: machine.Machine) -> footprint.Job:
    """The run as plans see it."""
    found = headers.of_recipe(recipe)
    return footprint.Job(recipe, found, suite_of(recipe), here.dtype.itemsize)


def identity(
    recipe: Recipe,
    models: tuple[Teacher, Teacher],
    windows: Windows | None,
    texts: Mapping[int, Windows],
    here: Machine,
    limits: Limits,
) -> dict[str, Any]:
    """All that decides a run's result, on the models of `find_models`, as plain values."""
    return {
        "recipe": resolve.explicit(recipe),
        "teacher": models[0].fingerprint,
        "student": models[1].fingerprint,
        "calibration": windows.fingerprint if windows else None,
        "texts": _fingerprints(texts),
        "limits": dataclasses.asdict(limits),
        "machine": here.identity,
    }


def _fingerprints(texts: Mapping[int, Windows]) -> list[str]:
    """sha256 of each text, in the order of the stages that read them."""
    return [text.fingerprint for _, text in sorted(texts.items())]

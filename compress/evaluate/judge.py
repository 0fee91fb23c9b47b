"""Judge a student, as read back from disk, beside its teacher: text, tasks, samples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.calibrate import sets
from compress.errors import CalibrationError
from compress.evaluate import harness
from compress.evaluate.harness import Answers, Bench
from compress.evaluate.samples import answers
from compress.evaluate.text import Reading, divergence, perplexity
from compress.recipe.schema import Calibration
from compress.recipe.suite import Suite, Text
from compress.results import Divergence, Perplexity, Progress, Sample, TaskScore
from compress.surgery.walk import Watch, Weights, hidden_states
from compress.teacher.folder import Teacher
from compress.teacher.hidden import HiddenCache

GLANCED = 4  # one of so many windows is read at a glance


@dataclass(frozen=True)
class Judgement:
    """What one model scored."""

    perplexity: Perplexity
    tasks: tuple[TaskScore, ...]


@dataclass(frozen=True)
class Reads:
    """What the suite's texts say of teacher and student."""

    before: Perplexity
    after: Perplexity
    divergence: Divergence


@dataclass(frozen=True)
class Asked:
    """What teacher and student scored on the suite's tasks."""

    before: tuple[TaskScore, ...]
    after: tuple[TaskScore, ...]


@dataclass(frozen=True)
class Said:
    """What teacher and student answered to the suite's prompts."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Judge:
    """One suite, one tokenizer, one way to compute: the same for every model that is judged.

    dtype: in which tasks and samples run. Perplexity and divergence always run in float32, so that
    what they show is the student's and not the arithmetic's.
    """

    suite: Suite
    tokenizer: Any
    cache: Path
    device: str
    dtype: torch.dtype
    watch: Watch = None

    def read_texts(self) -> None:
        """Read what the suite reads, for its mistakes to come before any long work.

        Raises:
            CalibrationError: a text is missing, unreadable or too short.
        """
        for text in dict.fromkeys((self.suite.perplexity, self.suite.divergence)):
            self._text(text)

    def check_tasks(self) -> None:
        """Find the suite's tasks, for their mistakes to come before any long work.

        Raises:
            EvaluationError: a task is unknown, cannot be fetched, or is of a kind not supported.
        """
        harness.check(self.suite.tasks, self.suite.lm_eval_tasks)

    def read(self, teacher: Teacher, student: Weights) -> Reads:
        """Both read the suite's texts; what the teacher says of them is kept in the cache."""
        texts = dict.fromkeys((self.suite.perplexity, self.suite.divergence))
        read = {t: (self._teacher_reads(teacher, t), self._reads(student, t)) for t in texts}
        before, after = (perplexity(reading) for reading in read[self.suite.perplexity])
        return Reads(before, after, divergence(*read[self.suite.divergence]))

    def glance(self, teacher: Teacher, student: Weights) -> Divergence:
        """What a student lacks of its teacher on the first quarter of the suite's windows."""
        whole = self._teacher_reads(teacher, text := self.suite.divergence)
        count = -(-text.windows // GLANCED)
        first = dataclasses.replace(whole, hidden=whole.hidden[:count], ids=whole.ids[:count])
        hidden = hidden_states(
            student, first.ids, device=self.device, dtype=torch.float32,
            watch=self._watch("student"),
        )  # fmt: skip
        return divergence(first, Reading(student, hidden, first.ids, whole.set))

    def ask(self, teacher: Teacher, student: Weights) -> Asked:
        """Both answer the suite's tasks; the teacher's answers are kept in the cache."""
        before, after = self._ask(teacher, teacher.fingerprint), self._ask(student)
        return Asked(before.scores, _with_flips(after, before))

    def say(self, teacher: Weights, student: Weights) -> Said:
        """Both answer the suite's prompts, greedily."""
        if not self.prompts:
            return Said(())
        said: list[list[str]] = []
        for who, weights in (("teacher", teacher), ("student", student)):
            self._tell("samples", len(said), f"{who} answers")
            said.append(self.answers(weights))
        self._tell("samples", len(said))
        return Said(tuple(Sample(*three) for three in zip(self.prompts, *said, strict=True)))

    def answers(self, weights: Weights) -> list[str]:
        """What one model answers to the suite's prompts, greedily."""
        wanted = self.suite.samples
        if wanted is None or not wanted.prompts:
            return []
        return answers(
            weights, self.tokenizer, wanted.prompts, max_new_tokens=wanted.max_new_tokens,
            device=self.device, dtype=self.dtype,
        )  # fmt: skip

    @property
    def prompts(self) -> tuple[str, ...]:
        """What models are asked to go on with, or to answer."""
        return tuple(self.suite.samples.prompts) if self.suite.samples else ()

    def alone(self, weights: Weights) -> Judgement:
        """Judge one model that has no teacher at hand."""
        reading = self._reads(weights, self.suite.perplexity)
        return Judgement(perplexity(reading), self._ask(weights).scores)

    def _teacher_reads(self, teacher: Teacher, text: Text) -> Reading:
        ids, name = self._text(text)
        kept = HiddenCache(teacher, self.cache, self.device, torch.float32, self._watch("teacher"))
        return Reading(teacher, kept.get(ids), ids, name)

    def _reads(self, weights: Weights, text: Text) -> Reading:
        ids, name = self._text(text)
        hidden = hidden_states(
            weights, ids, device=self.device, dtype=torch.float32, watch=self._watch("student")
        )
        return Reading(weights, hidden, ids, name)

    def _text(self, text: Text) -> tuple[Tensor, str]:
        wanted = Calibration(
            set=text.set, split=text.split, samples=text.windows, seq_len=text.seq_len
        )
        try:
            return sets.load(wanted, self.tokenizer).ids, Path(text.set).name
        except CalibrationError as error:
            raise CalibrationError(f"evaluate: {error}") from error

    def _ask(self, weights: Weights, fingerprint: str | None = None) -> Answers:
        bench = Bench(self.tokenizer, self.device, self.dtype, self.cache, self.watch)
        suite = self.suite
        if not (suite.tasks or suite.lm_eval_tasks):
            return Answers((), {})
        return bench.ask(
            weights, suite.tasks, suite.lm_eval_tasks, suite.limit, fingerprint=fingerprint
        )

    def _tell(self, step: str, done: int, detail: str = "") -> None:
        if self.watch:
            self.watch(Progress(step, done, 2, "model", detail))

    def _watch(self, who: str) -> Watch:
        watch = self.watch
        if watch is None:
            return None
        return lambda p: watch(Progress("evaluate", p.done, p.total, p.unit, f"{who} reads"))


def _with_flips(after: Answers, before: Answers) -> tuple[TaskScore, ...]:
    """Scores that say how many items were answered otherwise than the teacher answered them."""

    def flips(task: str) -> int:
        pairs = zip(after.choices[task], before.choices[task], strict=True)
        return sum(mine != theirs for mine, theirs in pairs)

    return tuple(dataclasses.replace(score, flips=flips(score.name)) for score in after.scores)

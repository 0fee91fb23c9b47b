"""Every error a user can meet, as one tree.

    CompressError
    ├── RequestError        exit 2: the request was wrong; nothing was run, nothing was written
    │   ├── RecipeError         a recipe, or something it names, cannot be what was meant
    │   ├── ModelError          a teacher that is missing, broken, unsafe or unsupported
    │   ├── CalibrationError    a text that is missing, unreadable or too short
    │   └── ArtifactError       an artifact that is missing, broken or already there
    ├── RunError            exit 1: the request was right and the run failed
    │   ├── SolveError          a linear could not be solved
    │   ├── TrainingError       a student could not be trained: its loss is no number, or grows
    │   ├── StorageError        the disk refused: full, read-only, gone
    │   ├── VerificationFailed  an artifact is not what it should be
    │   └── EvaluationError     a measurement could not be taken
    ├── GivenUp             exit 3: a glance at the student was enough; it was not judged
    └── GateMissed          exit 3: the student was made and judged not good enough

A message says where, what was found, what the rule is and what to do. Each kind has a section in
docs/errors.md, which `page` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LISTED = 50  # mistakes in one message
_SHOWN = 100  # characters of a stranger's word in a message


def shown(word: object) -> str:
    """A stranger's word, fit for a message: short, on one line, no control characters."""
    text = str(word)
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "…"
    return text if text.isprintable() else repr(text)


class CompressError(Exception):
    """Root of all errors a user can meet."""

    exit_code = 1
    section = "run"

    def __init__(self, message: str, *, section: str | None = None) -> None:
        """Say what is wrong.

        Args:
            message: where, what was found, what the rule is and what to do.
            section: of docs/errors.md, where one tells more of this than that of its kind.
        """
        super().__init__(message)
        if section is not None:
            self.section = section

    @property
    def page(self) -> str:
        """Where the documents tell more of it."""
        return f"docs/errors.md#{self.section}"


class RequestError(CompressError):
    """The request was wrong; nothing was run and nothing was written."""

    exit_code = 2
    section = "request"


class RecipeError(RequestError):
    """One or more mistakes in a recipe, all reported together."""

    section = "recipe"

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        count, listed = len(self.mistakes), self.mistakes[:_LISTED]
        tail = f"{count:,} mistake{'s' if count != 1 else ''}; nothing was run."
        if count > _LISTED:
            tail = f"The first {_LISTED} of {tail}"
        super().__init__("\n".join([*listed, f"{tail}   docs/errors.md#recipe"]))


class ModelError(RequestError):
    """A teacher that is missing, broken, unsafe or unsupported."""

    section = "model"


class CalibrationError(RequestError):
    """A calibration or evaluation text that is missing, unreadable or too short."""

    section = "calibration"


class ArtifactError(RequestError):
    """An artifact that is missing, broken, or in the way of a new one."""

    section = "artifact"


class RunError(CompressError):
    """The request was right and the run failed."""


class SolveError(RunError):
    """A linear could not be solved."""

    section = "solve"


class TrainingError(RunError):
    """A student could not be trained."""

    section = "training"


class StorageError(RunError):
    """The disk refused a read or a write."""

    section = "storage"


class VerificationFailed(RunError):  # noqa: N818 - a finding, said as one
    """An artifact is not what its format, its manifest or its student say it should be."""

    section = "verify"


class EvaluationError(RunError):
    """A measurement could not be taken."""

    section = "evaluation"


class GivenUp(CompressError):  # noqa: N818 - a verdict on the student, nothing failed
    """At a glance the student is so far from what is hoped for that it was not judged."""

    exit_code = 3
    section = "sweep"

    def __init__(
        self, message: str, *, size_bytes: int | None = None, kl_mean: float | None = None
    ) -> None:
        """Say what was seen: the size, or the mean KL on a few windows, in nats."""
        self.size_bytes, self.kl_mean = size_bytes, kl_mean
        super().__init__(message)


class GateMissed(CompressError):  # noqa: N818 - a verdict on the student, nothing failed
    """The student was judged not good enough: when it was made, or while it was."""

    exit_code = 3
    section = "gates"

    def __init__(self, message: str, linears: Sequence[Any] = ()) -> None:
        """Say what was missed.

        Args:
            message: each gate with what was found, its limit and where the report lies.
            linears: the `LinearResult` of each linear that ended the walk, for its report.
        """
        self.linears = tuple(linears)
        super().__init__(message)

"""Every error a user can meet, as one tree.

    CompressError
    ├── RequestError        exit 2: the request was wrong; nothing was run, nothing was written
    │   ├── RecipeError         a recipe, or something it names, cannot be what was meant
    │   ├── ModelError          a teacher that is missing, broken, unsafe or unsupported
    │   ├── CalibrationError    a text that is missing, unreadable or too short
    │   └── ArtifactError       an artifact that is missing, broken or already there
    ├── RunError            exit 1: the request was right and the run failed
    │   ├── SolveError          a linear could not be solved
    │   ├── StorageError        the disk refused: full, read-only, gone
    │   └── EvaluationError     a measurement could not be taken
    └── GateMissed          exit 3: the student was made and judged not good enough

A message says where, what was found, what the rule is and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class CompressError(Exception):
    """Root of all errors a user can meet."""

    exit_code = 1


class RequestError(CompressError):
    """The request was wrong; nothing was run and nothing was written."""

    exit_code = 2


class RecipeError(RequestError):
    """One or more mistakes in a recipe, all reported together."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        tail = f"{count} mistake{'s' if count != 1 else ''}; nothing was run."
        super().__init__("\n".join([*self.mistakes, f"{tail}   docs/errors.md#recipe"]))


class ModelError(RequestError):
    """A teacher that is missing, broken, unsafe or unsupported."""


class CalibrationError(RequestError):
    """A calibration or evaluation text that is missing, unreadable or too short."""


class ArtifactError(RequestError):
    """An artifact that is missing, broken, or in the way of a new one."""


class RunError(CompressError):
    """The request was right and the run failed."""


class SolveError(RunError):
    """A linear could not be solved."""


class StorageError(RunError):
    """The disk refused a read or a write."""


class EvaluationError(RunError):
    """A measurement could not be taken."""


class GateMissed(CompressError):  # noqa: N818 - a verdict on the student, nothing failed
    """The student was made and judged not good enough."""

    exit_code = 3

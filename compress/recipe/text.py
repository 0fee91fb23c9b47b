"""The text of the stage `distill`: that of a calibration, reasons, and what the student writes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from compress.recipe.quantize import STRICT
from compress.recipe.sections import Calibration

_Weight = Annotated[float, Field(ge=0, le=100)]


class Rationale(BaseModel):
    """The teacher reasons, then is asked for the answer; the student learns both, each its weight.

    What is given (the prompt, the cue) counts for nothing.
    """

    model_config = STRICT

    cue: str = Field(
        default="\nTherefore, the answer is",
        min_length=1,
        description="What the teacher is asked for the answer with, when it has reasoned; prompts "
        "or templates ask it to.",
    )
    reason_tokens: int = Field(
        default=128, ge=1, le=100_000, description="Tokens of the reasons, at most."
    )
    answer_tokens: int = Field(
        default=32, ge=1, le=100_000, description="Tokens of the answer, at most."
    )
    reason_weight: _Weight = Field(
        default=0.5, description="How much a token of the reasons counts in the loss."
    )
    answer_weight: _Weight = Field(
        default=1.0, description="The same of one of the answer.", validate_default=True
    )

    @field_validator("answer_weight")
    @classmethod
    def _counts(cls, value: float, info: ValidationInfo) -> float:
        if value == 0 and info.data.get("reason_weight") == 0:
            raise ValueError("0, as reason_weight is: nothing would count. Raise one of them.")
        return value


class Text(Calibration):
    """The text that a student and its teacher read."""

    rationale: Rationale | None = Field(
        default=None,
        description="Sets that the teacher writes, to prompts: reasons and answers, with weights "
        "of their own.",
        examples=["{reason_tokens: 96, reason_weight: 0.5}"],
    )

    @field_validator("rationale")
    @classmethod
    def _is_asked_for(cls, value: Rationale | None, info: ValidationInfo) -> Rationale | None:
        if value is not None and info.data.get("prompts", ()) is None:
            raise ValueError("there is nothing to reason about. Give prompts.")
        return value


class OnPolicy(BaseModel):
    """Steps in which the student goes on with the text itself, and its teacher judges that."""

    model_config = STRICT

    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Of the steps; drawn by `seed`."
    )
    prompt_tokens: int = Field(
        default=32,
        ge=1,
        description="Tokens of each window that stay; the rest is the student's, and only that "
        "counts.",
    )
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="Divides the logits from which it draws."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="It draws among the fewest words that hold this share together."
    )

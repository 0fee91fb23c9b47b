"""The fields of the stage `rotate`: what of a model is turned round inside, and by which matrix."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from compress.recipe.quantize import STRICT

Turn = Literal["none", "hadamard", "random"]


class Rotate(BaseModel):
    """Turn the teacher round inside: the same function of weights that are easier to round."""

    model_config = STRICT

    residual: Turn = Field(
        default="hadamard",
        description="Turns the residual stream (R1 of SpinQuant): by a `hadamard` matrix with "
        "random signs, by a `random` orthogonal one, or not. Norms are folded into linears; a head "
        "that was tied to the embedding becomes a matrix of its own, which the artifact pays for.",
    )
    values: Turn = Field(
        default="hadamard",
        description="Turns the values of every head (R2), undone in o: likewise.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Decides the signs and the random matrices."
    )

    @field_validator("values")
    @classmethod
    def _turns_something(cls, value: str, info: ValidationInfo) -> str:
        if value == "none" and info.data.get("residual") == "none":
            raise ValueError("none, and residual is none: nothing is turned. Leave out the stage.")
        return value

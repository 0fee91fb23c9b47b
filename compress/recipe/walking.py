"""Fields of every stage that solves linears block by block: the same words wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo


def used_by_method(value: Any, info: ValidationInfo, users: Mapping[str, Sequence[str]]) -> Any:
    """Refuse a field that the method does not use, given the methods that use each.

    A field validator: it is not called for defaults.
    """
    method, known = info.data.get("method"), users[str(info.field_name)]
    if method and method not in known:
        choice = " or ".join(known)
        raise ValueError(
            f"{method} does not use this field. Leave it out, or choose method: {choice}."
        )
    return value


def _in_order(value: float, info: ValidationInfo) -> float:
    if value and info.data.get("true_sequential") is False:
        raise ValueError(f"{value}, but true_sequential is false. Leave out one of them.")
    return value


DampPercent = Annotated[
    float,
    Field(
        gt=0, lt=1, description="Fraction of the mean diagonal added to the Hessian; 0.01 is 1 %."
    ),
]
TrueSequential = Annotated[
    bool,
    Field(
        description="Observe each linear behind those of its block that are solved already. "
        "`false` observes the dense block: nearly twice the forwards, but less memory.",
    ),
]
SinkTokens = Annotated[
    int,
    Field(
        ge=0,
        le=64,
        description="First tokens of a window, to which all later ones attend: attention sinks.",
    ),
]
SinkWeight = Annotated[
    float,
    Field(
        ge=0,
        le=1e6,
        description="How many times more than another token each of them counts in the Hessian.",
    ),
]
ErrorCorrection = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Share of the errors of what is solved already that each linear is asked to "
        "undo. Walks the teacher beside the student: nearly twice the forwards. Needs "
        "`true_sequential`.",
    ),
    AfterValidator(_in_order),
]

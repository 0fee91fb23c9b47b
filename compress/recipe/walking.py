"""Fields of every stage that solves linears block by block: the same words wherever they stand."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
]

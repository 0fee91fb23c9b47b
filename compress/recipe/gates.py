"""The fields of `evaluate.gates`: limits that a student must keep, and what happens if it does not.

What is measured against them: `compress.evaluate.gates`. What a limit on single linears does inside
the walk: `compress.stages.gate`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compress.errors import shown
from compress.recipe.quantize import STRICT

OnViolation = Literal["fail", "escalate", "keep_dense"]

WIDTHS = {  # what each format of an artifact can hold, for linears to be given more bits
    "packed": (2, 3, 4, 8),
    "dense": (),
    "compressed-tensors": (4, 8),  # what all its readers unpack in one way
    "gptq": (4, 8),
    "bnb-int8": (8,),
    "gguf": (2, 3, 4, 8),  # below 4 in blocks of 4
}
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_NAMES = "|".join(_UNITS)
_SIZE = rf"^[1-9]\d{{0,14}} ?({_NAMES})$"
_FORM = 'Write it as "80 MB": a whole number of B, KB, MB or GB; 1 MB is 1,000,000 bytes.'
_MEASURED = (
    "perplexity_increase_max", "kl_mean_max", "kl_p99_max", "top1_agreement_min",
    "accuracy_drop_max", "generation",
)  # fmt: skip


def in_bytes(size: str) -> int:
    """A size as recipes write it, `500 MB`, in bytes; 1 KB is 1,000."""
    digits = size.rstrip("BKMG ")
    return int(digits) * _UNITS[size[len(digits) :].strip()]


def in_words(nbytes: int) -> str:
    """The same the other way, in the largest unit that needs no fraction."""
    unit, one = next((u, n) for u, n in reversed(_UNITS.items()) if nbytes % n == 0)
    return f"{nbytes // one} {unit}"


def _sized(value: Any) -> Any:
    """A size as it is; a number alone is none: who writes 80 means MB, not bytes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit. {_FORM}")
    if isinstance(value, str) and not re.fullmatch(_SIZE, value):
        nothing = re.fullmatch(rf"0+ ?({_NAMES})", value)
        rule = "leaves room for nothing" if nothing else "is no size with its unit"
        raise ValueError(f'"{shown(value)}" {rule}. {_FORM}')
    return value


Size = Annotated[str, BeforeValidator(_sized), Field(pattern=_SIZE)]


@dataclass(frozen=True)
class LinearGate:
    """What one linear may show, and what becomes of one that shows more."""

    error_max: float
    on_violation: OnViolation
    widths: tuple[int, ...]  # that the artifact can hold, ascending


def wider(bits: int, widths: Sequence[int]) -> int | None:
    """The next width above `bits`; None where there is none."""
    return min((width for width in widths if width > bits), default=None)


class Gates(BaseModel):
    """Limits on the student; a run that misses one ends as `OUT.rejected`, with exit code 3."""

    model_config = STRICT

    perplexity_increase_max: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Largest rise of the perplexity, as a fraction of the teacher's; 0.10 is 10 %.",
        examples=[0.10],
    )
    kl_mean_max: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Largest mean KL divergence from the teacher, in nats per token.",
        examples=[0.1],
    )
    kl_p99_max: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Largest 99th percentile of that divergence.",
        examples=[1.0],
    )
    top1_agreement_min: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Smallest share of tokens for which teacher and student choose the same.",
        examples=[0.85],
    )
    accuracy_drop_max: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest drop of a task's accuracy, as a fraction; 0.02 is 2 points. A drop "
        "counts once it exceeds this by more than 1.645 standard errors: by chance, one in twenty.",
        examples=[0.02],
    )
    generation: Literal["sane"] | None = Field(
        default=None,
        description="`sane`: no more of the suite's greedy samples are empty, repeat themselves or "
        "are no text than of the teacher's own.",
        examples=["sane"],
    )
    linear_error_max: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Largest `relative_error` of one linear, judged before its block is committed. "
        "Linears that engines fuse (q, k, v; gate, up) are treated alike.",
        examples=[0.05],
    )
    size_max: Size | None = Field(
        default=None,
        description="Largest size of the artifact's folder, in B, KB, MB or GB.",
        examples=["80 MB"],
    )
    on_violation: OnViolation = Field(
        default="fail",
        description="`fail` ends the run. `escalate` gives a linear that misses "
        "`linear_error_max` the next wider grid at once, and for the other gates gives more bits "
        "to the worst linears and walks again; what misses at the widest grid fails. `keep_dense` "
        "leaves a linear that misses `linear_error_max` as it is; the other gates fail.",
    )
    rounds_max: int = Field(
        default=8,
        ge=1,
        le=64,
        description="How often `escalate` may walk again.",
    )

    @field_validator("on_violation")
    @classmethod
    def _can_act(cls, value: str, info: ValidationInfo) -> str:
        given = {name for name, limit in info.data.items() if limit is not None}
        if value == "keep_dense" and "linear_error_max" not in given:
            raise ValueError(
                "keep_dense acts on linears, and no linear_error_max says which. Give one, or "
                "choose fail or escalate."
            )
        if value == "escalate" and given == {"size_max"}:
            raise ValueError("escalate gives more bits, which no size_max is helped by. Use fail.")
        return value

    @field_validator("rounds_max")
    @classmethod
    def _has_rounds(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("on_violation") != "escalate":
            raise ValueError(
                f"{value}, but only on_violation: escalate makes rounds. Leave out one of them."
            )
        if not any(info.data.get(name) is not None for name in _MEASURED):
            raise ValueError(
                f"{value}, but no gate here makes rounds: linear_error_max acts inside the walk. "
                "Leave it out."
            )
        return value

    @model_validator(mode="after")
    def _sets_a_limit(self) -> Gates:
        if not self.limits:
            names = [name for name in Gates.model_fields if name not in _CONSEQUENCES]
            raise ValueError(f"set no limit. Give one of {', '.join(names)}.")
        return self

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that are set, by name, in the order of the schema."""
        given = {name: getattr(self, name) for name in Gates.model_fields}
        return {n: v for n, v in given.items() if v is not None and n not in _CONSEQUENCES}

    @property
    def measured(self) -> tuple[str, ...]:
        """The limits that only an evaluation can judge."""
        return tuple(name for name in self.limits if name in _MEASURED)

    @property
    def size_max_bytes(self) -> int | None:
        """`size_max` as a number of bytes."""
        return None if self.size_max is None else in_bytes(self.size_max)

    @property
    def escalates(self) -> bool:
        """Whether a student that misses a gate is made again."""
        return self.on_violation == "escalate" and bool(self.measured)


_CONSEQUENCES = ("on_violation", "rounds_max")

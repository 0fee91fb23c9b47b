"""The fields of the stage `allocate`: a budget, and the widths that linears may get within it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, field_validator

from compress.recipe.methods import Bits
from compress.recipe.quantize import STRICT, Quantize
from compress.recipe.scheme import override_for, scheme_for

_BITS = re.compile(r"(\d{1,2}(?:\.\d{1,6})?) bits")
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?) ?(KB|MB|GB)")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_KL = "kl_mean_max"
_FORMS = 'Write "3.7 bits", "70 MB" or {kl_mean_max: 0.05}.'


@dataclass(frozen=True)
class Budget:
    """What an allocation may use: exactly one of three.

    bits: bits per weight over the block linears, all their stored bytes counted.
    nbytes: of the whole artifact, tokenizer and head included.
    kl_mean: nats per token, as predicted from the calibration windows.
    """

    bits: Fraction | None = None
    nbytes: int | None = None
    kl_mean: float | None = None


def parse(written: str | Mapping[str, Any]) -> Budget:
    """Read a budget as recipes write it: ``3.7 bits``, ``70 MB``, ``{kl_mean_max: 0.05}``.

    Raises:
        ValueError: it is none of these, or nothing; the message says what to write.
    """
    if isinstance(written, Mapping):
        return Budget(kl_mean=_kl(written))
    if found := _BITS.fullmatch(written):
        budget = Budget(bits=_positive(Fraction(found[1]), written))
    elif found := _SIZE.fullmatch(written):
        nbytes = _positive(Fraction(found[1]), written) * _UNITS[found[2]]
        budget = Budget(nbytes=int(nbytes))
    else:
        raise ValueError(f"{written!r} is no budget with its unit. {_FORMS}")
    return budget


def _positive(amount: Fraction, written: str) -> Fraction:
    if not amount:
        raise ValueError(f"{written!r} leaves room for nothing. {_FORMS}")
    return amount


def _kl(written: Mapping[str, Any]) -> float:
    limit = written.get(_KL)
    number = float(limit) if isinstance(limit, int | float) and limit is not True else 0.0
    if set(written) != {_KL} or not 0 < number < math.inf:
        raise ValueError(f"{dict(written)} is not {{{_KL}: a number above 0}}. {_FORMS}")
    return number


def _checked(value: Any) -> Any:
    if not isinstance(value, str | Mapping):
        raise ValueError(f"{value} has no unit. {_FORMS}")
    parse(value)
    return value


Written = Annotated[
    str | dict[str, float],
    BeforeValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^({_BITS.pattern}|{_SIZE.pattern})$"},
                {
                    "type": "object",
                    "properties": {_KL: {"type": "number", "exclusiveMinimum": 0}},
                    "required": [_KL],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class Allocate(BaseModel):
    """Share bits out among the linears that the next stage, `quantize`, rounds."""

    model_config = STRICT

    budget: Written = Field(
        description='`"3.7 bits"`: bits per weight over the block linears, all stored bytes '
        'counted. `"70 MB"`: the whole artifact, tokenizer and head included; 1 MB is 1,000,000 '
        "bytes. `{kl_mean_max: 0.05}`: the fewest bytes for which the predicted mean KL, in nats "
        "per token, stays below.",
        examples=["3.7 bits"],
    )
    bits: Annotated[tuple[Bits, ...], Field(strict=False)] = Field(
        default=(2, 3, 4, 8),
        min_length=1,
        description="Widths that a linear may get. Linears that engines fuse (q, k, v; gate, up) "
        "get the same. An override of `quantize` that gives bits decides for its linears.",
    )
    samples: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Calibration windows, from the first on, on which sensitivities are measured.",
    )
    seq_len: int = Field(
        default=128,
        ge=8,
        le=8192,
        description="Tokens of each of them that are read, from the first on.",
    )

    @field_validator("bits")
    @classmethod
    def _are_different(cls, value: tuple[Bits, ...]) -> tuple[Bits, ...]:
        if len(set(value)) < 2:
            raise ValueError(
                f"{list(value)} leaves no choice. Give at least two widths of 2, 3, 4 and 8."
            )
        return tuple(sorted(set(value)))

    @property
    def parsed(self) -> Budget:
        """The budget as numbers."""
        return parse(self.budget)

    @property
    def written(self) -> str:
        """The budget in a few words."""
        return self.budget if isinstance(self.budget, str) else f"{_KL} {self.budget[_KL]:g}"

    @property
    def counts_head(self) -> bool:
        """Whether the budget is about the head too, so that it may be given bits."""
        return self.parsed.bits is None


def free(quantize: Quantize, linear_name: str) -> bool:
    """Whether a block linear's bits are for `allocate` to say: rounded, and by no override."""
    scheme = scheme_for(quantize, linear_name)
    pattern = override_for(quantize, linear_name)
    given = pattern is not None and quantize.overrides[pattern].bits is not None
    return scheme is not None and not given


def head_is_free(allocate: Allocate, quantize: Quantize) -> bool:
    """Whether the head's bits are for `allocate` to say: the budget counts it, nobody gave any."""
    return allocate.counts_head and quantize.head is None


def bits_used(allocate: Allocate, quantize: Quantize) -> set[int]:
    """Every width that a linear may get from the two stages."""
    given = {quantize.head, *(override.bits for override in quantize.overrides.values())}
    return {*allocate.bits, *(bits for bits in given if bits is not None)}


def too_tight(allocate: Allocate, bits_per_weight: float, size_bytes: int) -> str | None:
    """Why a budget cannot be kept; None where it can.

    Args:
        allocate: the stage; a budget of KL is not judged here.
        bits_per_weight: of the block linears, all on their narrowest grids.
        size_bytes: of that artifact.
    """
    budget = allocate.parsed
    if budget.bits is not None and bits_per_weight > budget.bits:
        least = f"{bits_per_weight:.3f} bits"
    elif budget.nbytes is not None and size_bytes > budget.nbytes:
        least = f"{size_bytes / 1e6:.3f} MB"
    else:
        return None
    return (
        f"{allocate.written} cannot be kept: the narrowest grids take {least}. Allow more, add "
        "narrower ones to bits, or share scales in larger groups."
    )

"""What `compress verify` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.results.records import SCHEMA_VERSION

CheckOutcome = Literal["passed", "failed", "refused", "not applicable", "not installed", "not run"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked of an artifact; `detail` says what was found, or what is wrong."""

    name: str
    outcome: CheckOutcome
    detail: str = ""


@dataclass(frozen=True)
class Consumer:
    """One engine that an artifact was loaded in, and how far its greedy answers were from ours.

    Margins are logits of the independent reader's float32 model: the likeliest token's less the
    one that the engine chose, 0 where they are one.
    """

    name: str
    outcome: CheckOutcome  # refused: its own rules, named in `detail`, keep it from opening this
    detail: str = ""
    version: str = ""
    dtype: str = ""
    tokens: int = 0
    ties: int = 0  # tokens with a margin, none of them above what is allowed when it passed
    margin_max: float | None = None
    kl_mean: float | None = None  # nats a token, over the engine's likeliest tokens and the rest
    log_probability_error_max: float | None = None


@dataclass(frozen=True)
class Verification:
    """What `compress verify` found; lives in ``verification.json``."""

    format: str | None  # None when the folder cannot be read
    checks: tuple[Check, ...]
    consumers: tuple[Consumer, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def failures(self) -> tuple[Check | Consumer, ...]:
        """Whatever disagrees."""
        found: tuple[Check | Consumer, ...] = self.checks + self.consumers
        return tuple(one for one in found if one.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether nothing disagrees."""
        return not self.failures

"""What histograms cannot tell: exact percentiles of the last values, and bytes a second."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from pydantic import BaseModel

KEPT = 8192  # values of each measure, the last ones


class Percentiles(BaseModel):
    """How many values there were, how many are kept, and the exact percentiles of those."""

    count: int
    kept: int
    p50: float | None
    p95: float | None
    p99: float | None


class Work(BaseModel):
    """What the last steps computed and read; waiting for requests is no part of the time."""

    steps: int
    seconds: float
    tokens_per_second: float | None
    bytes_per_second: float | None  # weights once a step, and keys and values of all pages in use
    flops_per_second: float | None  # of the linears and the head
    roof_bytes_per_second: float | None  # that this machine was seen to read, behind an answer
    roof_share: float | None


class Speculation(BaseModel):
    """What became of proposed tokens."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_at: list[float]  # share of the drafts whose token at this place was kept


class ModelSummary(BaseModel):
    """One model."""

    ttft_seconds: Percentiles
    itl_seconds: Percentiles
    tpot_seconds: Percentiles
    e2e_seconds: Percentiles
    queue_seconds: Percentiles
    work: Work | None
    speculation: Speculation | None
    prefix_hit_share: float | None
    kv_usage: float | None


class Summaries(BaseModel):
    """The answer of `/metrics.json`."""

    models: dict[str, ModelSummary]


class Recent:
    """The last values of a measure."""

    def __init__(self) -> None:
        self._count = 0
        self._values: deque[float] = deque(maxlen=KEPT)

    def add(self, value: float) -> None:
        """Take one more; the oldest leaves when there are too many."""
        self._count += 1
        self._values.append(value)

    def percentile(self, share: float) -> float | None:
        """The smallest value that at least `share` of the kept values do not exceed."""
        if not self._values:
            return None
        return sorted(self._values)[max(0, math.ceil(share * len(self._values)) - 1)]

    def summary(self) -> Percentiles:
        """Of all that is kept."""
        return Percentiles(
            count=self._count, kept=len(self._values), p50=self.percentile(0.5),
            p95=self.percentile(0.95), p99=self.percentile(0.99),
        )  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a step costs, and what the machine can do."""

    read_bytes: int  # weights, in a step of few tokens
    kv_bytes: float  # a token
    weights: int  # that a token is multiplied with
    roof_bytes_per_second: float | None = None  # not seen yet


@dataclass(frozen=True)
class Step:
    """One step of an engine."""

    seconds: float
    tokens: int  # computed
    context_tokens: int  # whose keys and values were in use


class Steps:
    """The last steps of an engine."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque(maxlen=KEPT)

    def add(self, step: Step) -> None:
        """Take one more."""
        self._steps.append(step)

    def work(self, facts: Facts) -> Work:
        """What they come to."""
        seconds = sum(step.seconds for step in self._steps)
        tokens = sum(step.tokens for step in self._steps)
        context = sum(step.context_tokens for step in self._steps)
        read = len(self._steps) * facts.read_bytes + context * facts.kv_bytes
        roof = facts.roof_bytes_per_second
        return Work(
            steps=len(self._steps),
            seconds=seconds,
            tokens_per_second=_rate(tokens, seconds),
            bytes_per_second=_rate(read, seconds),
            flops_per_second=_rate(2 * facts.weights * tokens, seconds),
            roof_bytes_per_second=roof,
            roof_share=_rate(read / roof, seconds) if roof else None,
        )


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds else None

"""How fast a folder answers, and what it takes to."""

from __future__ import annotations

from dataclasses import dataclass, field

PROMPT_TOKENS, NEW_TOKENS = 128, 64  # read and written wherever speed is measured


@dataclass(frozen=True)
class Timed:
    """How a folder was answered from, now, in a process of its own; rates are medians."""

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    ttft_seconds: float
    memory_bytes: int | None  # the most that was resident; None where no system tells it
    answers: int
    hardware: str
    threads: int
    versions: dict[str, str] = field(default_factory=dict)

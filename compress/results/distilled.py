"""What the stage `distill` taught a student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class HeldOut:
    """One look at the held-out windows."""

    step: int  # optimizer steps taken by then
    kl: float  # of the teacher and the student as it trains, mean per held-out token, nats
    loss: float | None  # mean over the steps since the last look, nats per token; None before any
    learning_rate: float  # of the next step


@dataclass(frozen=True)
class Distilled:
    """One stage, finished."""

    asked: str  # of the student, in words
    train: Literal["all", "lora", "scales_and_norms", "codes"]
    text: str  # its set, as the recipe names it
    text_fingerprint: str  # sha256 of its token ids
    tokens: int  # of it that were trained on, each once
    read_tokens: int  # of all steps together
    held_out_tokens: int
    learned_weights: int
    steps: int  # that were planned
    kept_step: int  # after which the student was best; 0: it stays as it was
    stopped: Literal["finished", "patience"]
    kl_before: float  # mean per held-out token, nats, of the student as it was stored
    kl_after: float
    checks: tuple[HeldOut, ...]
    changed_codes: int | None = None  # where codes were trained
    embeddings: bool = False  # whether embedding and head learned beside codes or their scales

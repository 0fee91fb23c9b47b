"""What the stage `restructure` made of a model's shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model; of blocks that differ, the largest."""

    blocks: int
    heads: int
    kv_heads: int
    channels: int  # of an MLP
    hidden: int
    parameters: int  # in all, a tied head once


@dataclass(frozen=True)
class BlockCut:
    """What is left of one block."""

    block: int  # its number before the stage; in the teacher, where no stage before cut blocks
    now: int | None  # its number behind the stage; None: it was removed
    heads: int
    kv_heads: int
    channels: int
    influence: float | None = None  # 1 - cosine of what enters and what leaves, where it was asked
    kl: float | None = None  # nats a token, when it was left out behind those that went before it
    error: float | None = None  # what is lost of its MLP's output: squared error over squares
    # nats a token that so few channels cost in this block alone, where they were shared out
    channels_kl: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A shape that was tried on a few windows."""

    shape: ModelShape
    kl: float  # mean per token, nats, on calibration windows that repair did not see
    chosen: bool = False
    decode_share: float | None = None  # time of a token over the teacher's, where it was measured


@dataclass(frozen=True)
class Restructured:
    """One stage, finished."""

    asked: str  # as the recipe wrote it
    repaired: bool
    before: ModelShape
    after: ModelShape
    blocks: tuple[BlockCut, ...]
    candidates: tuple[Candidate, ...] = ()
    stream_share: float | None = None  # of the squares of the normed stream, that stays
    decode_share_asked: float | None = None  # time of a token over the teacher's, at most

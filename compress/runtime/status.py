"""What an engine says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Description:
    """What an engine runs and how."""

    model_type: str
    format: str
    dtype: str
    device: str
    threads: int
    max_tokens: int  # of one request, prompt and answer
    pool_tokens: int  # whose keys and values there is room for
    resident_bytes: int  # weights in memory
    read_bytes: int  # of them, by a step of one token
    kv_bytes: float  # keys and values of one token
    weights: int  # numbers that a token is multiplied with, of all linears and the head
    paths: Mapping[str, str]  # linear → the path it takes, see `compress.runtime.linear`
    notes: tuple[str, ...]  # what a user should know before prompting


@dataclass(frozen=True)
class Status:
    """What an engine is doing, and has done since it was opened."""

    running: int
    waiting: int
    pages: int
    used_pages: int  # by requests that run
    prefix_queried_tokens: int  # of prompts that were looked for in the cache
    prefix_hit_tokens: int  # and found there
    preemptions: int
    computed_tokens: int  # of prompts, answers and proposals
    drafts: int  # times that tokens were proposed to a request
    draft_tokens: int  # proposed
    kept_tokens: int  # of them
    kept_at: tuple[int, ...]  # by position among the proposed

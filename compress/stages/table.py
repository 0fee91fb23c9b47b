"""Which function runs which stage of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.results import StageResult
from compress.stages import allocate, distill, kv_cache, prune, quantize, restructure, rotate
from compress.stages.context import Context
from compress.student import Student

STAGES: dict[str, Callable[[Student, Any, Context], StageResult]] = {
    "rotate": rotate.run,
    "restructure": restructure.run,
    "prune": prune.run,
    "distill": distill.run,
    "quantize": quantize.run,
    "allocate": allocate.run,
    "kv_cache": kv_cache.run,
}

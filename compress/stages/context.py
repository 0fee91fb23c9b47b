"""What every stage is given beside the student and its own spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress.results import Progress


@dataclass(frozen=True)
class Context:
    """Fixed for a whole run."""

    ids: Tensor  # [B, T], the calibration windows
    device: str
    dtype: torch.dtype  # in which blocks run
    scratch: Path  # a folder for files that only the run needs
    watch: Callable[[Progress], None] | None = None
    batch_tokens: int = 2048  # in one forward
    resident_bytes: int = 2 * 1024**3  # activations beyond it live in a mapped file

    def tell(self, step: str, done: int, total: int, detail: str = "") -> None:
        """Report progress to whoever watches."""
        if self.watch:
            self.watch(Progress(step, done, total, detail=detail))

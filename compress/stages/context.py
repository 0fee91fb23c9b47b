"""What every stage is given beside the student and its own spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from compress import storage
from compress.recipe.gates import LinearGate
from compress.results import Limits, Progress

_USUAL = Limits()


@dataclass(frozen=True)
class Context:
    """Fixed for a whole run."""

    ids: Tensor  # [B, T], the calibration windows
    device: str
    dtype: torch.dtype  # in which blocks run
    scratch: Path  # a folder for files that only the run needs
    watch: Callable[[Progress], None] | None = None
    limits: Limits = _USUAL
    gate: LinearGate | None = None  # what every linear must pass before its block is committed
    raised: Mapping[str, int] = field(default_factory=dict)  # linear → bits instead of the recipe's

    def room(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: str | torch.device
    ) -> Tensor:
        """A tensor for activations: in memory or, past a limit, mapped from a file.

        The file has no name: it is gone when the tensor is.

        Raises:
            StorageError: the disk is full.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes <= self.limits.resident_bytes or torch.device(device).type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        return storage.mapped(self.scratch / "activations.bin", shape, dtype)

    def tell(self, step: str, done: int, total: int, detail: str = "") -> None:
        """Report progress to whoever watches."""
        if self.watch:
            self.watch(Progress(step, done, total, detail=detail))

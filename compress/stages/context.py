"""What every stage is given beside the student and its own spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress import storage
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

    def room(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: str | torch.device
    ) -> Tensor:
        """A tensor for activations: in memory or, past a limit, mapped from a file.

        The file has no name: it is gone when the tensor is.

        Raises:
            StorageError: the disk is full.
        """
        count = math.prod(shape)
        if count * dtype.itemsize <= self.resident_bytes or torch.device(device).type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        path = self.scratch / "activations.bin"
        storage.reserve(path, count * dtype.itemsize)
        mapped = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
        path.unlink()
        return mapped

    def tell(self, step: str, done: int, total: int, detail: str = "") -> None:
        """Report progress to whoever watches."""
        if self.watch:
            self.watch(Progress(step, done, total, detail=detail))

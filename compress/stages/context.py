"""What every stage is given beside the student and its own spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from compress import storage
from compress.anatomy import Linear
from compress.calibrate.tokens import Windows
from compress.recipe.gates import LinearGate
from compress.recipe.quantize import Quantize
from compress.results import Limits, Progress, SizePart
from compress.shape import Shape
from compress.stages.team import ALONE, Team
from compress.student import Ledger

_USUAL = Limits()


class Sizes(Protocol):
    """What an artifact takes, to the byte, by the bits of its linears; see `plan.sizes.Counter`."""

    def artifact(self, allocated: Mapping[str, int]) -> Size:
        """All of it."""

    def linear(self, linear: Linear, allocated: Mapping[str, int]) -> int:
        """Stored bytes of one quantized linear, or of the head."""

    def shaped(self, sizes: Shape) -> int:
        """Bytes of all files when the model has another shape."""

    def divides(self, sizes: Shape) -> bool:
        """Whether groups of the stages behind divide what linears of another shape read."""


class Size(Protocol):
    """Of a whole artifact."""

    @property
    def size_bytes(self) -> int:
        """Of all files that a loader needs."""

    @property
    def bits_per_weight(self) -> float:
        """Over the block linears, all stored bytes counted."""

    @property
    def parts(self) -> tuple[SizePart, ...]:
        """By part of the model."""


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
    allocated: Mapping[str, int] = field(default_factory=dict)  # linear → bits by `allocate`
    ahead: Quantize | None = None  # the stage behind this one
    smoothed: bool = False  # a stage before this one has multiplied columns before it rounded them
    sizes: Sizes | None = None
    ledger: Ledger | None = None  # where units are noted that change no weight
    text: Windows | None = None  # what a stage trains on
    said: Callable[[Tensor], Tensor] | None = None  # ids [B, T] → the teacher's states [B, T, D]
    team: Team = ALONE  # the processes that share the work

    def room(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        device: str | torch.device,
        resident: bool = True,
    ) -> Tensor:
        """A tensor for activations: in memory or, past a limit, mapped from a file.

        The file has no name: it is gone when the tensor is. What is written and read only once
        need not be `resident`, however small it is.

        Raises:
            StorageError: the disk is full.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        fits = resident and nbytes <= self.limits.resident_bytes
        if fits or torch.device(device).type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        return storage.mapped(self.scratch / f"activations-{self.team.rank}.bin", shape, dtype)

    def noted(self, unit: str) -> Mapping[str, Any] | None:
        """The record of a unit that an earlier run has finished."""
        return self.ledger.get(unit) if self.ledger else None

    def note(self, unit: str, record: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Make the record of a unit final, with files in `scratch`; a later one replaces it."""
        if self.ledger:
            self.ledger.add(unit, record, files)

    def tell(
        self, step: str, done: int, total: int, detail: str = "", *, unit: str = "block"
    ) -> None:
        """Report progress to whoever watches."""
        if self.watch:
            self.watch(Progress(step, done, total, unit, detail))

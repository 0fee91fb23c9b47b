"""Which windows each optimizer step reads, and what the teacher said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from compress.stages.team import ALONE, Team
from compress.surgery.beside import Beside
from compress.surgery.learning import Lesson

_SHARD_TOKENS = 32_768  # whose hidden states are one file of the cache


@dataclass(frozen=True)
class Said:
    """Windows and the teacher's final hidden states of them, mapped from files of some thousands.

    The teacher runs when it is made, once for any text: later runs find the files. Of several
    processes each lets it read some; then all find the files.
    """

    ids: Tensor  # [B, T]
    get: Callable[[Tensor], Tensor]  # ids [b, T] → [b, T, D]
    team: Team = ALONE
    weights: Tensor | None = None  # [B, T], how much each token counts; None: alike
    _shards: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = self.ids.split(self._size)
        if self.team.size > 1:
            for number in self.team.own(len(parts)):
                self.get(parts[number])
            self.team.meet()
        self._shards.extend(self.get(part) for part in parts)

    @property
    def _size(self) -> int:
        return max(1, _SHARD_TOKENS // self.ids.shape[1])

    def of(self, windows: list[int]) -> Lesson:
        """Some windows, by their numbers."""
        states = [self._shards[one // self._size][one % self._size] for one in windows]
        weights = None if self.weights is None else self.weights[windows]
        return Lesson(self.ids[windows], torch.stack(states), weights=weights)

    def count(self, windows: Sequence[int]) -> float:
        """How much is asked in some windows, in tokens."""
        if self.weights is None:
            return float(len(windows) * self.ids.shape[1])
        return float(self.weights[list(windows), 1:].sum())


@dataclass(frozen=True)
class Lessons:
    """What a student reads: windows, and all that is known of what its teacher says of them."""

    said: Said
    beside: Beside | None = None  # where its blocks are asked, too
    blocks: tuple[int, ...] = ()  # which

    def of(self, windows: list[int], device: torch.device) -> Lesson:
        """Some windows, by their numbers, on a device."""
        found = self.said.of(windows).to(device)
        if self.beside is None:
            return found
        inside, _ = self.beside.read(found.ids, self.blocks)
        return replace(found, inside=tuple(inside[block] for block in self.blocks))


@dataclass(frozen=True)
class Order:
    """All windows once an epoch, each time in another order: told by seed and step alone."""

    windows: int
    a_step: int
    seed: int

    def of(self, step: int) -> list[int]:
        """The windows that an optimizer step reads; it may begin the next epoch."""
        places = range(step * self.a_step, (step + 1) * self.a_step)
        return [self._epoch(place // self.windows)[place % self.windows] for place in places]

    def _epoch(self, epoch: int) -> list[int]:
        return _shuffled(self.windows, self.seed, epoch)


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()

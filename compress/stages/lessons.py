"""Which windows each optimizer step reads, and what the teacher said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from compress.stages.policy import Writer
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
    beside: Beside | None = None  # where its blocks are asked, or what nobody has read before
    blocks: tuple[int, ...] = ()  # which
    writer: Writer | None = None  # who goes on with windows in some steps

    def of(self, windows: list[int], step: int, device: torch.device) -> Lesson:
        """Some windows, by their numbers, as a step reads them, on a device."""
        if self.writer and self.beside and self.writer.takes(step):
            ids = self.said.ids[windows].to(device)
            ids, weights = self.writer.write(ids, windows, step)
            inside, last = self.beside.read(ids, self.blocks)
            found = Lesson(ids, self.beside.finish(last), weights=weights, drawn=True)
        else:
            found = self.said.of(windows).to(device)
            if not (self.beside and self.blocks):
                return found
            inside, _ = self.beside.read(found.ids, self.blocks)
        return replace(found, inside=tuple(inside[block] for block in self.blocks))

    def count(self, windows: Sequence[int], step: int) -> float:
        """How much is asked in some windows in a step; of those written on each as much as all."""
        if self.writer and self.writer.takes(step):
            return float(len(windows))
        return self.said.count(windows)


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

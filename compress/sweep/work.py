"""What is left to do of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field

from compress.sweep.candidates import Candidate, Point


@dataclass
class Work:
    """What is left to do of a sweep."""

    todo: list[Candidate] = field(default_factory=list)
    begun: list[Point] = field(default_factory=list)  # by a search, and not finished
    known: list[tuple[Point, float]] = field(default_factory=list)  # what a search has learnt
    free: int = 0  # trials that a search has yet to choose

    @property
    def left(self) -> int:
        """How many trials."""
        return len(self.todo) + len(self.begun) + self.free

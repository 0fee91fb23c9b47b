"""Every trial of a sweep as it stands, for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from compress.results import Progress
from compress.results.swept import Trial


@dataclass
class Row:
    """One trial, and how far it is."""

    trial: Trial
    progress: Progress | None = None
    began: float | None = None  # as `time.monotonic` counts

    @property
    def seconds(self) -> float | None:
        """Of its run: those that it took, or those since it began."""
        if self.trial.seconds is not None or self.began is None:
            return self.trial.seconds
        return time.monotonic() - self.began if self.trial.state == "running" else None


@dataclass
class Board:
    """The trials of a sweep by name, in the order in which they were known."""

    rows: dict[str, Row] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial as it now is."""
        return tuple(row.trial for row in self.rows.values())

    def show(self, trials: Iterable[Trial]) -> None:
        """Take trials in, or what has become of them."""
        for trial in trials:
            row = self.rows.setdefault(trial.name, Row(trial))
            row.trial = trial
            if trial.state == "running" and row.began is None:
                row.began = time.monotonic()

    def advance(self, name: str, progress: Progress) -> None:
        """Note how far a trial is."""
        self.rows[name].progress = progress

    def end(self, state_of_running: str) -> None:
        """Note that trials at work were ended."""
        for row in self.rows.values():
            if row.trial.state == "running":
                row.trial = replace(row.trial, state="cut", reason=state_of_running)


Watch: TypeAlias = Callable[[Board, str], None] | None  # told of the board, and of who has changed

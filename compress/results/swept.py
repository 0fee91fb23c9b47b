"""What `compress sweep` found: every trial, and the best within the budget."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

SWEEP_VERSION = 1
State = Literal[
    "waiting", "running", "made", "rejected", "stopped", "too large", "invalid", "failed", "cut"
]
FINISHED: tuple[State, ...] = ("made", "rejected")


@dataclass(frozen=True)
class Trial:
    """One recipe of a sweep, and what has become of it."""

    name: str  # of its folder
    recipe: str
    fields: dict[str, str]  # what is varied, as JSON, by its dotted name
    state: State = "waiting"
    reason: str = ""  # why it is neither made nor on its way
    size_bytes: int | None = None  # planned, until it is made
    kl_mean: float | None = None
    perplexity: float | None = None
    top1_agreement: float | None = None
    decode_tokens_per_second: float | None = None
    glance_kl_mean: float | None = None  # of a few windows, where that stopped it
    seconds: float | None = None  # of its run; without what others had done for it
    shared_units: int = 0  # taken over from other trials
    restarts: int = 0  # after its process was killed
    over: tuple[str, ...] = ()  # what of the budget it does not keep

    @property
    def label(self) -> str:
        """In the words of its sweep: w4g64-rtn (bits 4, head none)."""
        fields = [
            f"{key.rpartition('.')[2]} {_plain(json.loads(value))}"
            for key, value in self.fields.items()
        ]
        return f"{self.recipe} ({', '.join(fields)})" if fields else self.recipe

    @property
    def within(self) -> bool:
        """Whether it is made and keeps the budget."""
        return self.state == "made" and not self.over

    def measure(self, objective: str) -> float | None:
        """What an objective looks at: the lower, the better."""
        if objective == "decode":
            speed = self.decode_tokens_per_second
            return None if speed is None else -speed
        found: float | None = getattr(self, {"size": "size_bytes"}.get(objective, objective))
        return found


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended."""

    sweep: str
    folder: str
    objective: str
    trials: tuple[Trial, ...]
    front: tuple[str, ...]  # not beaten in both size and quality
    best: str | None
    command: str  # that makes the best again; "" where there is none
    page: str  # of the comparison; "" where nothing was made
    seconds: float
    ended_by: str = ""  # what ended it before its last trial
    schema_version: int = SWEEP_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        plain = asdict(self)
        return {"schema_version": plain.pop("schema_version"), **plain}


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)

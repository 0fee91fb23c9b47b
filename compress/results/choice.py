"""What `compress auto` found: which shipped recipes may do, which were tried, which it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

CHOICE_VERSION = 1
MEETS: Final = "meets"
UNDECIDED: Final = "undecided"
MISSES: Final = "misses"
FAILED: Final = "failed"
RULED_OUT: Final = "ruled out"
NOT_TRIED: Final = "not tried"
Verdict = Literal["meets", "undecided", "misses", "failed", "ruled out", "not tried"]


@dataclass(frozen=True)
class Wanted:
    """What a student must keep; None where nothing is asked."""

    max_size_bytes: int | None = None
    max_kl: float | None = None  # mean, nats per token
    min_speed: float | None = None  # tokens a second, decoded here, one request


@dataclass(frozen=True)
class Estimate:
    """A number of a short trial, and how far from it a longer look may end."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Trial:
    """A recipe carried out in short."""

    folder: str
    size_bytes: int
    kl: Estimate | None  # with the 95 % interval that the windows' spread gives
    speed: Estimate | None  # of several timings: median, slowest, fastest; None where not asked
    seconds: float


@dataclass(frozen=True)
class Option:
    """One shipped recipe with this teacher."""

    recipe: str
    sets: tuple[str, ...]  # what is laid over it, as `--set`
    verdict: Verdict
    reason: str = ""
    planned_size_bytes: int | None = None
    at_most: bool = False  # bits or a shape have yet to be found
    catalogue_kl: float | None = None  # as measured on the catalogue's teacher
    trial: Trial | None = None


@dataclass(frozen=True)
class Choice:
    """All of them, those that were tried first."""

    teacher: str
    wanted: Wanted
    options: tuple[Option, ...]
    chosen: str | None  # a recipe's name; None where none meets what is wanted
    nearest: str | None  # of those that were tried, or of all by their size
    protocol: str  # what a short trial is
    file: str | None = None  # the recipe that the user owns
    command: str | None = None  # that carries it out

    def option(self, name: str) -> Option:
        """One of them by its recipe's name."""
        return next(one for one in self.options if one.recipe == name)

    def as_dict(self) -> dict[str, Any]:
        """As JSON tells it."""
        return {"schema_version": CHOICE_VERSION, **asdict(self)}

"""What `compress compare` found: several artifacts side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compress.results.records import Divergence, Perplexity, TaskScore
from compress.results.timed import Timed

COMPARISON_VERSION = 1


@dataclass(frozen=True)
class Reply:
    """What one model answered to one prompt, greedily."""

    prompt: str
    teacher: str | None  # what its teacher did; None where it has none
    answer: str


@dataclass(frozen=True)
class Judged:
    """One folder as it was judged for a comparison, by what all others were judged by."""

    perplexity: Perplexity
    tasks: tuple[TaskScore, ...]
    dtype: str  # in which tasks and prompts were answered
    divergence: Divergence | None = None  # None where there is no teacher with the same tokens
    teacher: str = ""
    teacher_fingerprint: str = ""
    replies: tuple[Reply, ...] = ()
    timed: Timed | None = None  # None where our runtime does not run it
    notes: tuple[str, ...] = ()  # what is missing, and why


@dataclass(frozen=True)
class Number:
    """One number of one artifact, and how it was measured."""

    value: float
    low: float | None = None  # of the interval that holds it in 95 of 100 cases
    high: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    text: str = ""  # sha256 of the tokens or items; "" in results of before it was kept
    witness: dict[str, Any] = field(default_factory=dict)  # speaks for the text where no hash does


@dataclass(frozen=True)
class Field:
    """One thing that is not the same everywhere, by name of the artifact."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One column: a number of every artifact that has it."""

    name: str  # as in results.json and in every ``--json``
    label: str
    unit: Literal["bytes", "bits", "", "nats", "share", "tokens/s", "seconds"]
    better: Literal["low", "high"]
    numbers: dict[str, Number]
    differs: tuple[Field, ...] = ()  # in what the protocols differ; then nothing is ranked
    ranking: tuple[str, ...] = ()  # the best first

    @property
    def comparable(self) -> bool:
        """Whether one protocol gave all its numbers."""
        return not self.differs


@dataclass(frozen=True)
class Entry:
    """One artifact: what its headers say, and where its numbers come from."""

    name: str
    folder: str
    format: str
    recipe: str  # "" where no run of ours left it
    teacher: str
    size_bytes: int
    parts_bytes: dict[str, int]  # by part, as `SizePart` names them
    hardware: str = ""
    date: str = ""
    histogram_edges: tuple[float, ...] = ()  # of KL per token, as in `Divergence`
    histogram_counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two artifacts on one task, item by item: McNemar's exact test of who is right more often."""

    task: str
    first: str
    second: str
    items: int
    first_alone: int  # items that only the first answered right
    second_alone: int
    p_value: float


@dataclass(frozen=True)
class FlippedItem:
    """One item of a task that the artifacts do not all answer alike."""

    task: str
    item: int  # its place in the task, from 0
    question: str  # "" where the items do not ship with compress
    expected: str
    answers: dict[str, str]
    right: dict[str, bool]


@dataclass(frozen=True)
class Prompt:
    """One prompt and everybody's greedy answer to it."""

    prompt: str
    teacher: str | None  # None where the artifacts have several teachers
    answers: dict[str, str]


@dataclass(frozen=True)
class Front:
    """Artifacts that no other beats in both of two measures."""

    x: str
    y: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that the page, the table and the files say."""

    artifacts: tuple[Entry, ...]
    measures: tuple[Measure, ...]
    front: Front | None
    recipe: tuple[Field, ...]
    made_by: tuple[Field, ...]
    pairs: tuple[Pair, ...]
    flipped: tuple[FlippedItem, ...]
    prompts: tuple[Prompt, ...]
    suite: str = ""  # by which all were measured anew; "" where results were read
    schema_version: int = COMPARISON_VERSION

    @property
    def names(self) -> tuple[str, ...]:
        """The artifacts by name, as they were given."""
        return tuple(entry.name for entry in self.artifacts)

    def measure(self, name: str) -> Measure | None:
        """One column by its name."""
        return next((one for one in self.measures if one.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``; every measure says whether it is comparable."""
        plain = asdict(self)
        for told, measure in zip(plain["measures"], self.measures, strict=True):
            told["comparable"] = measure.comparable
        return {"schema_version": plain.pop("schema_version"), **plain}

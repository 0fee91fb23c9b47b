"""What a run found, as frozen dataclasses of plain numbers.

``results.json`` holds a `Results`, identical for two runs of one lock on one machine; times and
memory, which never are, live in ``measured.json`` as a `Measured`. Field names are the API of every
``--json`` output.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

SCHEMA_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Perplexity:
    """Exp of the mean token loss, with the protocol that gave it."""

    perplexity: float
    set: str
    seq_len: int
    stride: int
    windows: int
    tokens: int


@dataclass(frozen=True)
class Divergence:
    """Per-token KL(teacher || student) in nats over the whole vocabulary, on held-out text."""

    set: str
    tokens: int
    kl_mean: float
    kl_p50: float
    kl_p99: float
    top1_agreement: float
    flips: int
    histogram_edges: tuple[float, ...]  # one more than counts; logarithmic
    histogram_counts: tuple[int, ...]


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on one task."""

    name: str
    metric: str
    items: int
    accuracy: float
    stderr: float
    flips: int = 0  # items answered otherwise than the teacher did


@dataclass(frozen=True)
class Side:
    """One model as evaluated: the teacher (before) or the student, read back from disk (after)."""

    size_bytes: int
    bits_per_weight: float  # over the block linears, all stored bytes counted
    perplexity: Perplexity | None
    tasks: tuple[TaskScore, ...] = ()


@dataclass(frozen=True)
class SizePart:
    """Stored bytes of one part of the model."""

    part: Literal["block linears", "head", "embedding", "norms and biases", "other files"]
    weights: int
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True)
class LinearResult:
    """What became of one linear."""

    name: str
    block: int | None
    role: str
    method: str
    outcome: Literal["solved", "kept_dense"]
    bits: int | None
    group_size: int | None
    relative_error: float  # squared error of its outputs over their squares
    damp_percent: float | None = None  # what was really used, after escalation
    dead_columns: int = 0
    note: str = ""


@dataclass(frozen=True)
class StageResult:
    """One stage of a recipe, finished."""

    stage: str
    method: str
    linears: tuple[LinearResult, ...]


@dataclass(frozen=True)
class Sample:
    """Greedy continuations of one prompt, side by side."""

    prompt: str
    teacher: str
    student: str


@dataclass(frozen=True)
class Provenance:
    """What decided the run."""

    recipe: str  # name of the recipe
    recipe_text: str  # the locked recipe, as YAML
    teacher: str
    teacher_fingerprint: str
    calibration: str
    calibration_fingerprint: str  # sha256 of the token ids
    calibration_tokens: int
    seed: int
    threads: int
    device: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """Everything a report shows except times and memory."""

    provenance: Provenance
    before: Side
    after: Side
    divergence: Divergence | None
    stages: tuple[StageResult, ...]
    sizes: tuple[SizePart, ...]
    samples: tuple[Sample, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def fallbacks(self) -> tuple[LinearResult, ...]:
        """Linears that did not become what the recipe asked for."""
        return tuple(r for stage in self.stages for r in stage.linears if r.outcome != "solved")


@dataclass(frozen=True)
class Measured:
    """Times and memory of one run; never part of its identity."""

    seconds: dict[str, float]  # by step of the pipeline, with "total"
    peak_memory_bytes: int
    hardware: str
    date: str
    decode_tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None = None


@dataclass(frozen=True)
class Progress:
    """Where a run is; handed to the `watch` callable of every long step."""

    step: str  # "quantize", "evaluate", …
    done: int
    total: int
    unit: str = "block"
    detail: str = ""  # the linear or task at work


def to_json(value: Any) -> str:
    """Render any dataclass of this module as stable, readable JSON."""
    return json.dumps(dataclasses.asdict(value), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[T], text: str) -> T:
    """Rebuild a dataclass of this module from what `to_json` wrote.

    Raises:
        ValueError: the text is not JSON, or holds another schema version.
    """
    data = json.loads(text)
    if isinstance(data, dict) and data.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {data['schema_version']}, this version reads {SCHEMA_VERSION}"
        )
    return typing.cast(T, _build(kind, data))


def _build(kind: Any, data: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})  # type: ignore[operator]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _build(next(a for a in args if a is not type(None)), data)
    if origin is tuple:
        return tuple(_build(args[0], item) for item in data)
    return data

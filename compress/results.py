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
    escalated_from: int | None = None  # the bits that the recipe asked for, where they were raised


def fell_back(linear: LinearResult) -> bool:
    """Whether a linear became something else than its recipe asked for."""
    return linear.outcome != "solved" or linear.escalated_from is not None


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
class GateResult:
    """One limit that a recipe sets on its student, and what was found."""

    name: str  # as in `evaluate.gates`
    limit: float
    found: float | None  # None where nothing measured it
    passed: bool
    note: str = ""  # on what it was measured, or why it was missed


@dataclass(frozen=True)
class Raised:
    """One linear that is given more bits."""

    name: str
    from_bits: int
    to_bits: int


@dataclass(frozen=True)
class Round:
    """One student that missed a gate, and what the next one was given more bits for."""

    gates: tuple[GateResult, ...]
    size_bytes: int
    raised: tuple[Raised, ...]
    first_block: int  # where the next walk begins; the number of blocks where only the head changes


@dataclass(frozen=True)
class Verdict:
    """Whether the student is what its recipe demands.

    REGRESSION: it missed a gate. INFEASIBLE: it did, and more bits were tried or cannot be had.
    """

    outcome: Literal["ACCEPT", "REGRESSION", "INFEASIBLE"]
    gates: tuple[GateResult, ...]
    rounds: tuple[Round, ...] = ()  # of escalation, the first first
    reason: str = ""  # why there is no further round, where one was needed

    @property
    def missed(self) -> tuple[GateResult, ...]:
        """The gates that the student does not pass."""
        return tuple(gate for gate in self.gates if not gate.passed)


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
    after: Side | None  # None where a gate stopped the run before the student was whole
    divergence: Divergence | None
    stages: tuple[StageResult, ...]
    sizes: tuple[SizePart, ...]
    samples: tuple[Sample, ...] = ()
    verdict: Verdict | None = None  # None where the recipe sets no gates
    schema_version: int = SCHEMA_VERSION

    @property
    def linears(self) -> tuple[LinearResult, ...]:
        """Every linear that a stage touched, as the last stage to touch it left it."""
        last = {linear.name: linear for stage in self.stages for linear in stage.linears}
        return tuple(last.values())

    @property
    def fallbacks(self) -> tuple[LinearResult, ...]:
        """Linears that did not become what the recipe asked for: kept dense, or given more bits."""
        return tuple(r for stage in self.stages for r in stage.linears if fell_back(r))


@dataclass(frozen=True)
class Measured:
    """Times and memory of one run; never part of its identity."""

    seconds: dict[str, float]  # by step of the pipeline, with "total"
    peak_memory_bytes: int
    hardware: str
    date: str
    decode_tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None = None
    resumed_units: int = 0  # finished by runs that were cut short, whose seconds are not in here


@dataclass(frozen=True)
class Limits:
    """What bounds a run's memory; `compress.memory` derives it from a budget.

    Part of a run's identity: sums in other pieces round otherwise.
    """

    batch_tokens: int = 2048  # in one forward; at least one window
    resident_bytes: int = 2 * 1024**3  # activations of one kind beyond it live in a mapped file
    solve_rows: int = 16384  # rows of a stack of matrices solved at once


CheckOutcome = Literal["passed", "failed", "refused", "not applicable", "not installed", "not run"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked of an artifact; `detail` says what was found, or what is wrong."""

    name: str
    outcome: CheckOutcome
    detail: str = ""


@dataclass(frozen=True)
class Consumer:
    """One engine that an artifact was loaded in, and how far its greedy answers were from ours.

    Margins are logits of the independent reader's float32 model: the likeliest token's less the
    one that the engine chose, 0 where they are one.
    """

    name: str
    outcome: CheckOutcome  # refused: its own rules, named in `detail`, keep it from opening this
    detail: str = ""
    version: str = ""
    dtype: str = ""
    tokens: int = 0
    ties: int = 0  # tokens with a margin, none of them above what is allowed when it passed
    margin_max: float | None = None
    kl_mean: float | None = None  # nats a token, over the engine's likeliest tokens and the rest
    log_probability_error_max: float | None = None


@dataclass(frozen=True)
class Verification:
    """What `compress verify` found; lives in ``verification.json``."""

    format: str | None  # None when the folder cannot be read
    checks: tuple[Check, ...]
    consumers: tuple[Consumer, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def failures(self) -> tuple[Check | Consumer, ...]:
        """Whatever disagrees."""
        found: tuple[Check | Consumer, ...] = self.checks + self.consumers
        return tuple(one for one in found if one.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether nothing disagrees."""
        return not self.failures


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
        ValueError: the text is not JSON, holds another schema version, or values of other types.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(data, dict) and data.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {data['schema_version']}, this version reads {SCHEMA_VERSION}"
        )
    return typing.cast(T, _build(kind, data, kind.__name__))


def _refuse_constant(word: str) -> typing.NoReturn:
    raise ValueError(f"{word} is no number of JSON's")


def _build(kind: Any, data: Any, where: str) -> Any:
    """The value of type `kind` that plain `data` stands for; `where` names its place."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        some = next(one for one in args if one is not type(None))
        return None if data is None else _build(some, data, where)
    if dataclasses.is_dataclass(kind) and isinstance(data, dict):
        return _record(kind, data, where)
    if origin is tuple and isinstance(data, list):
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {name: _build(args[1], value, f"{where}.{name}") for name, value in data.items()}
    if origin is Literal and data in args:
        return data
    whole = type(data) is int and abs(data) < 2**63
    if (kind is float and (whole or type(data) is float)) or (kind is int and whole):
        return data
    if kind in (str, bool) and type(data) is kind:
        return data
    raise ValueError(f"{where} is {str(data)[:40]!r}")


def _record(kind: Any, data: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if unknown := [name for name in data if name not in hints]:
        raise ValueError(f"{where} has no {unknown[0][:40]!r}")
    found = {name: _build(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return kind(**found)
    except TypeError as error:  # a field is missing: its message names it
        raise ValueError(str(error)) from error

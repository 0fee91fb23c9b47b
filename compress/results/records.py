"""The records themselves, one dataclass each; a field name is the API of every ``--json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from compress.results.distilled import Distilled
from compress.results.restructured import Restructured
from compress.results.zeros import ZeroAllocation

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Perplexity:
    """Exp of the mean token loss, with the protocol that gave it."""

    perplexity: float
    set: str
    seq_len: int
    stride: int
    windows: int
    tokens: int
    fingerprint: str = ""  # sha256 of the token ids; "" in results of before it was kept


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
    fingerprint: str = ""  # sha256 of the token ids
    window_means: tuple[float, ...] = ()  # mean KL of each window: how far chance moves the mean


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on one task."""

    name: str
    metric: str
    items: int
    accuracy: float
    stderr: float
    flips: int = 0  # items answered otherwise than the teacher did
    fingerprint: str = ""  # sha256 of the items
    answered: tuple[int, ...] = ()  # the choice made of each item, where items have choices
    right: tuple[bool, ...] = ()  # whether it was the right one


@dataclass(frozen=True)
class Side:
    """One model as evaluated: the teacher (before) or the student, read back from disk (after)."""

    size_bytes: int
    bits_per_weight: float  # over the block linears, all stored bytes counted
    perplexity: Perplexity | None
    tasks: tuple[TaskScore, ...] = ()
    kv_bytes_per_token: int | None = None  # keys and values of all blocks, as they are cached


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
    outlier_columns: int = 0  # input columns that reached the threshold in the calibration
    outlier_share: float = 0.0  # of the columns, as multiplied in float, mean over its batches
    largest_columns: tuple[int, ...] = ()  # a few of those columns, the furthest out first
    sparsity: float = 0.0  # fraction of its weights that are zero, where it was pruned
    kept_weights: int | None = None  # how many weights pruning left; None: all
    learned_codes: float | None = None  # share of its codes that learned rounding moved


def fell_back(linear: LinearResult) -> bool:
    """Whether a linear became something else than its recipe asked for."""
    return linear.outcome != "solved" or linear.escalated_from is not None


@dataclass(frozen=True)
class KVBlock:
    """What became of the keys and values that one block caches."""

    block: int
    numbers: Literal["int8", "fp8_e4m3"]
    granularity: Literal["tensor", "head", "channel", "token"]  # what shares a scale
    key_scale_max: float
    value_scale_max: float
    key_error: float  # squared error of the keys of the calibration, over their squares
    value_error: float


@dataclass(frozen=True)
class Width:
    """What a fused group would cost at one width."""

    bits: int
    kl: float  # mean per token, nats, as predicted when only this group is rounded
    size_bytes: int


@dataclass(frozen=True)
class Share:
    """The bits that one fused group, or the head, got of a budget."""

    linears: tuple[str, ...]
    block: int | None
    kind: str  # qkv, o, gate_up, down, head
    bits: int
    widths: tuple[Width, ...]  # that it might have got; one where the recipe gave it its bits


@dataclass(frozen=True)
class Allocation:
    """A budget and how it was shared out."""

    budget: str  # as the recipe wrote it
    kl_predicted: float  # mean per token, nats, on calibration windows: the sum over all groups
    bits_per_weight: float  # over the block linears, all stored bytes counted
    size_bytes: int  # of the whole artifact
    shares: tuple[Share, ...]

    @property
    def bits(self) -> dict[str, int]:
        """Bits by linear."""
        return {name: share.bits for share in self.shares for name in share.linears}


@dataclass(frozen=True)
class StageResult:
    """One stage of a recipe, finished."""

    stage: str
    method: str
    linears: tuple[LinearResult, ...]
    allocation: Allocation | None = None  # of `allocate`, which changes no weight
    kv: tuple[KVBlock, ...] = ()
    shape: Restructured | None = None  # of `restructure`
    distilled: Distilled | None = None  # of `distill`
    zeros: ZeroAllocation | None = None  # of `prune`, where they are not the same everywhere


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
    student: str = ""  # the model that the student began as, where it was not the teacher
    student_fingerprint: str = ""
    teacher_license: str = ""  # as its card or its GGUF file names it; "" where it names none
    student_license: str = ""


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
        """Every linear of the student that a stage touched, as the last to touch it left it."""
        return tuple({linear.name: linear for linear in _left(self.stages)}.values())

    @property
    def allocation(self) -> Allocation | None:
        """How bits were shared out under a budget; None where the recipe says all of them."""
        return next((stage.allocation for stage in self.stages if stage.allocation), None)

    @property
    def fallbacks(self) -> tuple[LinearResult, ...]:
        """Linears that did not become what the recipe asked for: kept dense, or given more bits."""
        return tuple(linear for linear in _left(self.stages) if fell_back(linear))


def _left(stages: Iterable[StageResult]) -> list[LinearResult]:
    """All records of linears, by their names in the student; of blocks that are gone, none."""
    found = list[LinearResult]()
    for stage in stages:
        if stage.shape is not None:
            found = renumbered(found, {cut.block: cut.now for cut in stage.shape.blocks})
        found += stage.linears
    return found


def renumbered(
    linears: Iterable[LinearResult], numbers: Mapping[int, int | None]
) -> list[LinearResult]:
    """Records by the numbers that blocks have now; a block without one is gone."""
    found = list[LinearResult]()
    for linear in linears:
        if (was := linear.block) is None:
            found.append(linear)
        elif (now := numbers.get(was)) is not None:
            name = linear.name.replace(f".{was}.", f".{now}.", 1)
            found.append(replace(linear, name=name, block=now))
    return found


@dataclass(frozen=True)
class Measured:
    """Times and memory of one run; never part of its identity."""

    seconds: dict[str, float]  # on the wall, by step of the pipeline, with "total"
    peak_memory_bytes: int
    hardware: str
    date: str
    decode_tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None = None
    ttft_seconds: float | None = None  # of the same prompt, up to its first token
    resumed_units: int = 0  # finished by runs that were cut short, whose seconds are not in here
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # as `seconds`; {} in older ones
    shared_units: int = 0  # taken over from other runs, the same


@dataclass(frozen=True)
class Limits:
    """What bounds a run's memory; `compress.memory` derives it from a budget.

    Part of a run's identity: sums in other pieces round otherwise.
    """

    batch_tokens: int = 2048  # in one forward; at least one window
    resident_bytes: int = 2 * 1024**3  # activations of one kind beyond it live in a mapped file
    solve_rows: int = 16384  # rows of a stack of matrices solved at once


@dataclass(frozen=True)
class Progress:
    """Where a run is; handed to the `watch` callable of every long step."""

    step: str  # "quantize", "evaluate", …
    done: int
    total: int
    unit: str = "block"
    detail: str = ""  # the linear or task at work

"""Every number of the artifacts, and whether one protocol gave them all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from compress.compare.sides import Artifact
from compress.results import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    Divergence,
    Measured,
    TaskScore,
    Timed,
)
from compress.results.comparison import Field, Front, Measure, Number

ABSENT = "–"
_Unit: TypeAlias = Literal["bytes", "bits", "", "nats", "share", "tokens/s", "seconds"]
_Z = 1.959964  # standard deviations that hold 95 of 100 cases
_CLOSE = 1e-3  # two readings of one teacher on one text are nearer than that
_DECIDING = ("compress", "torch")  # of the versions of a run: who answers, who multiplies
_QUALITY = ("kl_mean", "perplexity", "top1_agreement")  # the first that can be ranked is drawn


class Kind(NamedTuple):
    """How one measure is called and read."""

    label: str
    unit: _Unit
    better: Literal["low", "high"]


KINDS = {
    "size_bytes": Kind("size", "bytes", "low"),
    "bits_per_weight": Kind("bits per weight", "bits", "low"),
    "bits_per_weight_with_head": Kind("bits per weight with head", "bits", "low"),
    "perplexity": Kind("perplexity", "", "low"),
    "kl_mean": Kind("KL, mean", "nats", "low"),
    "kl_p50": Kind("KL, median", "nats", "low"),
    "kl_p99": Kind("KL, 99th percentile", "nats", "low"),
    "top1_agreement": Kind("agreement", "share", "high"),
    "decode_tokens_per_second": Kind("decode", "tokens/s", "high"),
    "prefill_tokens_per_second": Kind("prefill", "tokens/s", "high"),
    "ttft_seconds": Kind("first token", "seconds", "low"),
    "answering_memory_bytes": Kind("peak memory of answering", "bytes", "low"),
    "peak_memory_bytes": Kind("peak memory of its making", "bytes", "low"),
}


def measures(artifacts: Sequence[Artifact]) -> tuple[Measure, ...]:
    """Every column for which at least one artifact has a number."""
    numbers = {one.name: dict(_numbers(one)) for one in artifacts}
    known = dict.fromkeys(name for found in numbers.values() for name in found)
    order = [*KINDS]
    ordered = sorted(known, key=lambda name: order.index(_before(name)))
    return tuple(
        _measure(name, {who: found[name] for who, found in numbers.items() if name in found})
        for name in ordered
    )


def front(found: Sequence[Measure]) -> Front | None:
    """Who is not beaten in both size and quality; None where no quality can be ranked."""
    by_name = {one.name: one for one in found}
    size = by_name["size_bytes"]
    quality = next((by_name[q] for q in _QUALITY if q in by_name and by_name[q].ranking), None)
    if quality is None:
        return None
    names = [name for name in size.numbers if name in quality.numbers]
    best = [one for one in names if not any(_beats(two, one, (size, quality)) for two in names)]
    return Front(size.name, quality.name, tuple(best))


def differing(numbers: Mapping[str, Number]) -> tuple[Field, ...]:
    """In what the protocols of some numbers differ.

    The text is told by its hash. Where results of before it was kept are among them, what their
    teacher scored on the text speaks for it: another teacher, or another score, is another text.
    """
    hashed = all(number.text for number in numbers.values())
    facts = {
        who: {**number.protocol, **({"text": number.text} if hashed else number.witness)}
        for who, number in numbers.items()
    }
    return tuple(
        Field(name, values)
        for name in dict.fromkeys(key for fact in facts.values() for key in fact)
        if not _alike(list((values := _of(facts, name)).values()))
    )


def interval(task: TaskScore) -> tuple[float, float]:
    """What holds the true accuracy in 95 of 100 cases: Wilson's; by its error where it is none."""
    n, p = task.items, task.accuracy
    if not n or "perplexity" in task.metric:
        return p - _Z * task.stderr, p + _Z * task.stderr
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    reach = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _of(facts: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {who: fact.get(name, ABSENT) for who, fact in facts.items()}


def _alike(values: Sequence[Any]) -> bool:
    if all(isinstance(value, float) for value in values):
        return all(math.isclose(value, values[0], rel_tol=_CLOSE) for value in values)
    return all(value == values[0] for value in values)


def _before(name: str) -> str:
    """Where a column stands: tasks behind the agreement."""
    return "top1_agreement" if name.startswith("tasks.") else name


def _kind(name: str) -> Kind:
    if name in KINDS:
        return KINDS[name]
    _, task, metric = name.split(".", 2)
    label = task.replace("_", " ")
    return Kind(label, "", "low") if "perplexity" in metric else Kind(label, "share", "high")


def _measure(name: str, numbers: dict[str, Number]) -> Measure:
    kind, differs = _kind(name), differing(numbers)
    sign = 1 if kind.better == "low" else -1
    ranking = sorted(numbers, key=lambda who: sign * numbers[who].value)
    ranked = () if differs or len(numbers) < 2 else tuple(ranking)
    return Measure(name, kind.label, kind.unit, kind.better, numbers, differs, ranked)


def _beats(one: str, other: str, axes: Sequence[Measure]) -> bool:
    """Whether one is as good in everything and better in something."""
    signs = [1 if axis.better == "low" else -1 for axis in axes]
    gaps = [
        sign * (axis.numbers[other].value - axis.numbers[one].value)
        for sign, axis in zip(signs, axes, strict=True)
    ]
    return min(gaps) >= 0 and max(gaps) > 0


def _numbers(artifact: Artifact) -> Iterator[tuple[str, Number]]:
    yield "size_bytes", Number(artifact.size_bytes)
    yield "bits_per_weight", Number(artifact.bits_per_weight)
    yield "bits_per_weight_with_head", Number(artifact.bits_per_weight_with_head)
    side = artifact.side
    if side and side.perplexity:
        found = side.perplexity
        protocol = {
            "set": found.set, "seq_len": found.seq_len, "stride": found.stride,
            "windows": found.windows, "tokens": found.tokens, "dtype": "float32",
        }  # fmt: skip
        witness = _witness(artifact, found.set)
        number = Number(
            found.perplexity, protocol=protocol, text=found.fingerprint, witness=witness
        )
        yield "perplexity", number
    if artifact.divergence:
        yield from _kl(artifact, artifact.divergence)
    for task in side.tasks if side else ():
        yield f"tasks.{task.name}.{task.metric}", _task(artifact, task)
    yield from _speed(artifact)


def _kl(artifact: Artifact, found: Divergence) -> Iterator[tuple[str, Number]]:
    protocol = {
        "set": found.set, "tokens": found.tokens, "dtype": "float32", "teacher": artifact.teacher,
    }  # fmt: skip
    witness = {"suite": artifact.lock.get("evaluate", {}).get("suite", ABSENT)}
    for name in ("kl_mean", "kl_p50", "kl_p99", "top1_agreement"):
        value = getattr(found, name)
        yield name, Number(value, protocol=protocol, text=found.fingerprint, witness=witness)


def _task(artifact: Artifact, task: TaskScore) -> Number:
    protocol = {"metric": task.metric, "items": task.items, "dtype": artifact.dtype}
    before = {one.name: one for one in artifact.results.before.tasks} if artifact.results else {}
    witness: dict[str, Any] = {"teacher": artifact.teacher}
    if task.name in before:
        witness["accuracy of the teacher"] = before[task.name].accuracy
    low, high = interval(task)
    return Number(task.accuracy, low, high, protocol, task.fingerprint, witness)


def _witness(artifact: Artifact, text: str) -> dict[str, Any]:
    """What the teacher of an artifact scored on a text when the artifact was made."""
    before = artifact.results.before.perplexity if artifact.results else None
    scored = {"perplexity of the teacher": before.perplexity} if before else {}
    return {"teacher": artifact.teacher, **scored} if before and before.set == text else {}


def _speed(artifact: Artifact) -> Iterator[tuple[str, Number]]:
    if artifact.judged:
        yield from _timed(artifact.judged.timed)
    if (measured := artifact.measured) is None:
        return
    made = artifact.made
    machine: dict[str, Any] = {"hardware": measured.hardware}
    machine |= {"device": made.device, "threads": made.threads} if made else {}
    if not artifact.judged:
        yield from _rates(measured, machine | _asked(made.versions if made else {}))
    yield "peak_memory_bytes", Number(measured.peak_memory_bytes, protocol=machine)


def _timed(found: Timed | None) -> Iterator[tuple[str, Number]]:
    if found is None:
        return
    machine = {"hardware": found.hardware, "device": "cpu", "threads": found.threads}
    protocol = machine | _asked(found.versions) | {"median of answers": found.answers}
    yield from _rates(found, protocol)
    if found.memory_bytes is not None:
        inside = {**protocol, "of": "a process that opens the folder and answers, Python included"}
        yield "answering_memory_bytes", Number(found.memory_bytes, protocol=inside)


def _rates(found: Measured | Timed, protocol: dict[str, Any]) -> Iterator[tuple[str, Number]]:
    for name in ("decode_tokens_per_second", "prefill_tokens_per_second", "ttft_seconds"):
        if (value := getattr(found, name)) is not None:
            yield name, Number(value, protocol=protocol)


def _asked(versions: Mapping[str, str]) -> dict[str, Any]:
    """What is answered, by the code, and the versions that decide how fast."""
    told = {name: versions[name] for name in _DECIDING if name in versions}
    return {"prompt tokens": PROMPT_TOKENS, "new tokens": NEW_TOKENS, **told}

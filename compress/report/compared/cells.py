"""Numbers and protocols in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from compress.report import numbers
from compress.report.numbers import NONE
from compress.results.comparison import Comparison, Field, Measure, Number, Pair

SURE = 0.05  # p values below it are told as differences
MARGIN = 0.1  # by which speeds and memories have to differ: they come out otherwise each time
TIMED = (
    "decode_tokens_per_second", "prefill_tokens_per_second", "ttft_seconds",
    "answering_memory_bytes", "peak_memory_bytes",
)  # fmt: skip
BEST_IS = (
    "better than another, and none better. Tasks by the paired test (p below "
    f"{SURE}), speed and memory by more than {100 * MARGIN:g} %"
)
_HASH = 12  # characters of a sha256
_LONG = 60  # characters of a value of a recipe


def number(measure: Measure, found: Number | None, *, exact: bool = False) -> str:
    """One cell; with `exact` without the interval."""
    if found is None:
        return NONE
    text = _value(measure.unit, found.value)
    if found.low is None or found.high is None or exact:
        return text
    return f"{text} ({between(measure, found)})"


def between(measure: Measure, found: Number) -> str:
    """The ends of the interval around a number, "" where there is none."""
    if found.low is None or found.high is None:
        return ""
    low, high = (_value(measure.unit, end) for end in (found.low, found.high))
    return f"{low.removesuffix(' %')} to {high}"


def _value(unit: str, value: float) -> str:
    if unit == "bytes":
        return numbers.size(round(value))
    if unit == "share":
        return numbers.percent(value)
    if unit == "seconds":
        return f"{1e3 * value:.0f} ms" if value < 1 else numbers.duration(value)
    if unit in ("", "bits"):
        return f"{value:.2f}"
    return f"{numbers.digits(value)} tokens/s" if unit == "tokens/s" else numbers.digits(value)


def unit(measure: Measure) -> str:
    """What a column counts in, where its cells do not say it."""
    return "nats" if measure.unit == "nats" else ""


def bests(comparison: Comparison, measure: Measure) -> tuple[str, ...]:
    """Who is shown to be the best of a column: better than somebody, and nobody better.

    A task shows it by its paired test, speed and memory by their margin, all else by its cells.
    """
    ranked = measure.ranking

    def leads(one: str) -> bool:
        others = [two for two in ranked if two != one]
        return any(_ahead(comparison, measure, one, two) for two in others) and not any(
            _ahead(comparison, measure, two, one) for two in others
        )

    return tuple(one for one in ranked if leads(one))


def _ahead(comparison: Comparison, measure: Measure, one: str, other: str) -> bool:
    """Whether one number is shown to be better than another."""
    if measure.name.startswith("tasks."):
        return any(_shown(pair, measure, one, other) for pair in comparison.pairs)
    if measure.ranking.index(one) > measure.ranking.index(other):
        return False
    mine, theirs = (measure.numbers[who] for who in (one, other))
    if measure.name in TIMED:
        low, high = sorted((mine.value, theirs.value))
        return high > low * (1 + MARGIN)
    return number(measure, mine) != number(measure, theirs)


def _shown(pair: Pair, measure: Measure, one: str, other: str) -> bool:
    """Whether a paired test shows that one is right more often than another on a task."""
    if pair.task != measure.name.split(".", 2)[1] or {pair.first, pair.second} != {one, other}:
        return False
    return pair.p_value < SURE and better(pair) == one


def better(pair: Pair) -> str:
    """Who of two is right alone more often."""
    return pair.first if pair.first_alone > pair.second_alone else pair.second


def protocol(measure: Measure) -> str:
    """How the numbers of a column were measured, where all were measured alike."""
    first = next(iter(measure.numbers.values()))
    facts = [f"{name} {value(found)}" for name, found in first.protocol.items()]
    if first.text:
        facts.append(f"text {first.text[:_HASH]}")
    elif facts and first.witness:
        facts.append("text by its name, not hashed")
    return ", ".join(facts)


def refusals(comparison: Comparison) -> list[str]:
    """Say of columns in what their protocols differ, and which artifacts have which."""
    alike = defaultdict(list)
    for measure in comparison.measures:
        if not measure.comparable:
            told = [f"{field.name} {shares(field)}" for field in measure.differs]
            alike["; ".join(told)].append(measure.label)
    return [
        f"Not compared: {listed(labels)}. Their protocols differ: {why}."
        for why, labels in alike.items()
    ]


def shares(field: Field) -> str:
    """Each value with the artifacts that have it: 40 (a); 20 (b, c)."""
    by_value = defaultdict(list)
    for who, found in field.values.items():
        by_value[value(found)].append(who)
    return ", ".join(f"{text} ({', '.join(names)})" for text, names in by_value.items())


def value(found: Any) -> str:
    """One value of a recipe or a protocol; hashes are cut."""
    if found is None:
        return "null"
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, float):
        return f"{found:.6g}"
    text = f"{found:,}" if isinstance(found, int) else str(found)
    if len(text) == 64 and not text.strip("0123456789abcdef"):
        return text[:_HASH]
    return text if len(text) <= _LONG else text[:_LONG] + "…"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def sentences(comparison: Comparison) -> list[str]:
    """The comparison in a few plain sentences; only what can be ranked is called best."""
    said = []
    if (size := comparison.measure("size_bytes")) and size.ranking:
        told = number(size, size.numbers[size.ranking[0]])
        least = bests(comparison, size)
        said.append(
            f"The smallest: {listed(least)} ({told})." if least else f"All have the size {told}."
        )
    front = comparison.front
    if front and (quality := comparison.measure(front.y)):
        best = quality.ranking[0]
        told = f"{number(quality, quality.numbers[best])} {unit(quality)}".strip()
        named = bests(comparison, quality)
        said.append(
            f"The best in {quality.label}: {listed(named)} ({told})."
            if named
            else f"All have the same {quality.label} ({told})."
        )
        said.append(f"On the front of size and {quality.label}: {listed(front.names)}.")
    if refused := [one.label for one in comparison.measures if not one.comparable]:
        said.append(f"Measured differently, and so not compared: {listed(refused)}.")
    return said

"""Numbers and protocols in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from compress.report import numbers
from compress.report.numbers import NONE
from compress.results.comparison import Comparison, Field, Measure, Number

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


def bests(measure: Measure) -> tuple[str, ...]:
    """Who is the best of a column, as its cells tell it; none where all are alike."""
    told = {name: number(measure, measure.numbers[name]) for name in measure.ranking}
    if len(set(told.values())) < 2:
        return ()
    return tuple(name for name, text in told.items() if text == told[measure.ranking[0]])


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
        least = bests(size)
        said.append(
            f"The smallest: {listed(least)} ({told})." if least else f"All have the size {told}."
        )
    front = comparison.front
    if front and (quality := comparison.measure(front.y)):
        best = quality.ranking[0]
        told = f"{number(quality, quality.numbers[best])} {unit(quality)}".strip()
        named = bests(quality)
        said.append(
            f"The best in {quality.label}: {listed(named)} ({told})."
            if named
            else f"All have the same {quality.label} ({told})."
        )
        said.append(f"On the front of size and {quality.label}: {listed(front.names)}.")
    if refused := [one.label for one in comparison.measures if not one.comparable]:
        said.append(f"Measured differently, and so not compared: {listed(refused)}.")
    return said
